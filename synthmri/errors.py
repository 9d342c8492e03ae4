"""The one error that is the user's to mend."""


class UserError(Exception):
    """Bad input or parameters. The message names value, bound and remedy; stages print it without a traceback."""
