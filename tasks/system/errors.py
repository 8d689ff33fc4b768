"""The one error a user is meant to read: what is wrong, where, and what to do, in a single line."""


class UserError(Exception):
    """Bad input or configuration. The stage wrapper prints its message without a traceback and exits with 2."""
