"""The report: its numbers, figures, pictures and page.

Imports `tasks.evaluation` and the rooms that it imports.
"""
