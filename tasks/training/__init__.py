"""The training loop, which resumes to the bit, and its parts.

Imports `tasks.data`, `tasks.runtime` and the rooms that these import.
"""
