"""The training loop, which resumes to the bit, and what it is made of.

Imports `tasks.data`, `tasks.runtime` and the rooms that these import.
"""
