"""The one error that a user is meant to read. Its single line says what is wrong, where, and what to do."""


class UserError(Exception):
    """Bad input or configuration. The stage wrapper prints its message without a traceback and exits with 2."""
