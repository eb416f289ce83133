"""Patterns for dotted names, as configurations have them: `to_q`, `transformer_blocks.8-23.*`, `add_*_proj`."""

import re
from collections.abc import Iterable

# More blocks than any model has; a range without an end goes up to it.
_LAST = 999

_RANGE = re.compile(r"(\d+)-(\d*)")
_ALLOWED = re.compile(r"[\w*-]+(\.[\w*-]+)*")


class PatternError(ValueError):
    """What is given is no pattern; the message says why."""


def ending(pattern: str) -> re.Pattern[str]:
    """A pattern for the end of a name; it begins where a part of the name does.

    Args:
        pattern: parts of a name with dots between them. `*` stands for any characters, dots among them, and a part
            `8-23` for the numbers from 8 to 23, `8-` for those from 8 on.

    Returns:
        For `fullmatch` with a name.

    Raises:
        PatternError: it is none.
    """
    return re.compile(rf"(?:.*\.)?{_expression(pattern)}")


def inside(pattern: str) -> re.Pattern[str]:
    """A pattern for the beginning of a name: what a name lies inside of.

    Args:
        pattern: as above; one that begins with a number is for the first number in a name.

    Returns:
        For `fullmatch` with a name.

    Raises:
        PatternError: it is none.
    """
    anywhere = r"(?:[^.]*[^.\d][^.]*\.)*" if pattern[:1].isdigit() else ""
    return re.compile(rf"{anywhere}{_expression(pattern)}\..*")


def folded(names: Iterable[str]) -> list[str]:
    """Names with runs of numbers written as ranges: "blocks.0.proj" and "blocks.1.proj" as "blocks.0-1.proj".

    Args:
        names: in the order in which to list them.

    Returns:
        Patterns that match these names, in the order of the first name of each.
    """
    patterns = list(dict.fromkeys(names))
    parts = max((name.count(".") + 1 for name in patterns), default=0)
    for place in reversed(range(parts)):
        patterns = _fold(patterns, place)
    return patterns


def _expression(pattern: str) -> str:
    if not _ALLOWED.fullmatch(pattern):
        raise PatternError(
            f"{pattern!r} is no name or pattern: parts of a name with dots between them, * for anything, 8-23 for a "
            "range of numbers"
        )
    return r"\.".join(map(_part, pattern.split(".")))


def _part(part: str) -> str:
    if (found := _RANGE.fullmatch(part)) is None:
        return ".*".join(map(re.escape, part.split("*")))
    first, last = int(found[1]), int(found[2] or _LAST)
    if not first <= last <= _LAST:
        raise PatternError(f"{part!r} is no range of numbers: the second is below the first, or above {_LAST}")
    return f"(?:{'|'.join(map(str, range(first, last + 1)))})"


def _fold(names: list[str], place: int) -> list[str]:
    """Fold the numbers of one part."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for name in names:
        parts = name.split(".")
        if len(parts) > place and parts[place].isdigit():
            groups.setdefault((*parts[:place], "", *parts[place + 1 :]), []).append(int(parts[place]))
        else:
            groups[tuple(parts)] = []
    found = []
    for held, numbers in groups.items():
        for run in _runs(numbers) if numbers else [""]:
            found.append(".".join(run if index == place and numbers else part for index, part in enumerate(held)))
    return found


def _runs(numbers: list[int]) -> list[str]:
    """Runs of numbers that rise by one, as "0-3" or "7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
