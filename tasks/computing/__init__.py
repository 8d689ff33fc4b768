"""What the numbers of a result depend on wherever it is computed: random streams, precision, and the order of ranks.

Imports no other room of tasks.
"""
