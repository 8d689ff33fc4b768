"""Building the stages of one workspace: their order, their processes, and their records in DVC, MLflow and Prefect.

Imports `flows.entry` and `tasks`.
"""
