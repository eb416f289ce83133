"""The one exception for a user's mistake."""


class FeraError(ValueError):
    """Something the user gave cannot work; the message says what is wrong, where, and what to do.

    An argument or a setting stands in backticks in it, by its name in Python: `batch_size`. The command line names its
    flag instead, prints the message and exits with code 2; a caller of the library may catch it as a `ValueError`.
    """
