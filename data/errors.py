"""The one exception that is for the user to correct."""


class UserError(ValueError):
    """Something asked for cannot be done. Its message is one line: what is wrong, and what to do.

    Commands print that line and exit with status 2; every other exception is a bug and keeps its traceback.
    """
