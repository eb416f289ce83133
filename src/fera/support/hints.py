"""What exists under a name near to one that does not, to end an error message with."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known name that is most like another; None where none is much like it.

    Args:
        name: unknown.
        known: what there is.
        cutoff: least likeness, in (0, 1], as `difflib.get_close_matches` has it.
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return near[0] if near else None


def did_you_mean(name: str) -> str:
    """The question whether a name was meant, quoted unless it is a flag: "did you mean 'train.steps'?"."""
    return f"did you mean {name if name.startswith('-') else repr(name)}?"


def hint(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """The question whether the nearest name was meant, after a semicolon; empty where none is near.

    The arguments are those of `nearest`.
    """
    near = nearest(name, known, cutoff=cutoff)
    return f"; {did_you_mean(near)}" if near is not None else ""
