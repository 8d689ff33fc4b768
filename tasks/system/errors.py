"""Errors that a user is meant to read. Their single line says what is wrong, where, and what to do."""


class UserError(Exception):
    """Bad input or configuration. The stage wrapper prints its message without a traceback and exits with 2."""


class WorkerDied(Exception):
    """A process that reads data for a stage is gone, whatever the input. The stage prints the line and exits with 1."""
