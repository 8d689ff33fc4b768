"""What every process needs of the machine: files, locks, paths, processes, and errors in one line.

The modules here import no other room.
"""
