"""What a flow needs before its first line runs: Prefect's settings, the password of the servers, and the terminal.

Imports `tasks.system`, and no other room of flows.
"""
