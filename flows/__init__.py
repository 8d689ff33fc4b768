"""What a person starts: the pipeline as a Prefect flow, sweeps of it, and the local servers.

The rooms below hold their parts. Flows import `tasks` and nothing imports flows.
"""
