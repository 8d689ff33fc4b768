"""Looks over a workspace and says in one line each what is wrong and what to do: `python -m flows.doctor`.

Each module that has a function `look` looks at one kind of thing. It reads, and changes nothing.
"""
