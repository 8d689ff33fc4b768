"""What every process needs of the machine: files, locks, paths, processes, and errors in one line.

Imports no other room.
"""
