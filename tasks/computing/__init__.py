"""Random streams, the precision of products, and the order of ranks, on which the numbers of every result depend.

The modules here import no other room of tasks.
"""
