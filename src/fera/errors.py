"""The one exception for a user's mistake."""


class FeraError(ValueError):
    """Something the user gave cannot work; the message says what is wrong, where, and what to do.

    The command line prints the message and exits with code 2; a library caller may catch it as the
    `ValueError` that it is.
    """
