"""The exception for what the user can correct."""


class UserError(ValueError):
    """What the user asked for cannot be done. The message is one line: what is wrong, and what to do.

    Commands print that line and exit with status 2; every other exception is a bug and keeps its traceback.
    """
