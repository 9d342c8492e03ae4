"""The one error that is the user's to mend."""


class UserError(Exception):
    """Bad input or parameters. The message names the value, the bound and the remedy; stages print it without a traceback."""
