"""Flows: what runs when, and how often it is retried. Knows Prefect and DVC; knows no tensors."""
