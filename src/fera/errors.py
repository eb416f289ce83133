"""The one exception for a user's mistake, and what is never taken for one."""

# A name or an argument that is wrong in a program, fera or a library. Where other libraries raise many kinds of errors
# for what a user gave, these are none of them: they pass, and show where they come from.
PROGRAMMING_ERRORS = (AttributeError, NameError, TypeError)


class FeraError(ValueError):
    """Something the user gave cannot work; the message says what is wrong, where, and what to do.

    An argument or a setting stands in backticks in it, by its name in Python: `batch_size`. The command line names its
    flag instead, prints the message and exits with code 2; a caller of the library may catch it as a `ValueError`.
    """


def reason_of(error: BaseException) -> str:
    """An error of another library in one line; of one that sounds like a program's, the kind as well.

    For libraries that answer odd files with such errors: diffusers has no attribute of a pipeline's class, for one.
    """
    kind, text = type(error).__name__, str(error).strip()
    if not text:
        return kind
    line = text.splitlines()[0]
    return f"{kind}: {line}" if isinstance(error, PROGRAMMING_ERRORS) else line
