"""Building the stages of one workspace: their order, their processes, and what DVC, MLflow and Prefect keep of them.

Imports `flows.entry` and `tasks`.
"""
