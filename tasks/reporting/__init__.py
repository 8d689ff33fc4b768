"""The report's parts: its numbers (`collect`, `recovery`), its figures and pictures, and its page."""
