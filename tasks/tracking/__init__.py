"""Reports of stages to MLflow. A report is written to disk first, and a thread sends it.

The modules here import `tasks.system` and `tasks.params`.
"""
