"""Reports of stages on their way to MLflow: written to disk first, then sent by a thread.

Imports `tasks.system` and `tasks.params`.
"""
