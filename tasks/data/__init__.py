"""Pictures and captions: sources, shards, cached encodings, and the order in which training sees them.

Imports `tasks.computing`, `tasks.params` and `tasks.system`.
"""
