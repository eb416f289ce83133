"""Words of commands from what a page was filled with: nothing typed there becomes a flag or leaves the folders."""

from collections.abc import Mapping
from typing import Any

from fera.errors import FeraError
from fera.web.places import Places

_LONGEST = 20_000


def text_of(asked: Mapping[str, Any], name: str, *, needed: bool = False) -> str:
    """A text that was sent, without blanks around it; empty where there is none.

    Args:
        asked: what was sent.
        name: of the text.
        needed: whether it must not be empty.

    Raises:
        FeraError: it is no text, too long, or missing though needed.
    """
    value = asked.get(name, "")
    if not isinstance(value, str) or "\0" in value:
        raise FeraError(f"{name} was not sent as a text; reload the page")
    if len(value) > _LONGEST:
        raise FeraError(f"{name} has more than {_LONGEST:,} letters; shorten it")
    if needed and not value.strip():
        raise FeraError(f"{name} is empty; fill it in")
    return value.strip()


def lines_of(asked: Mapping[str, Any], name: str, what: str) -> list[str]:
    """Lines of a text that was sent, as arguments of their own: one that looks like a flag is refused.

    Raises:
        FeraError: as `text_of`, or a line begins with a dash.
    """
    lines = [line.strip() for line in text_of(asked, name).replace("\r", "").split("\n") if line.strip()]
    if flags := [line for line in lines if line.startswith("-")]:
        raise FeraError(f"{what} cannot begin with a dash, for a command takes it for a flag: {flags[0][:60]}")
    return lines


def list_of(asked: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Entries that were sent.

    Raises:
        FeraError: they are no list of objects, or too many.
    """
    entries = asked.get(name, [])
    if not isinstance(entries, list) or len(entries) > 16 or not all(isinstance(entry, dict) for entry in entries):
        raise FeraError(f"{name} was not sent whole; reload the page")
    return entries


def path_of(asked: Mapping[str, Any], name: str, places: Places, *, needed: bool = False) -> str:
    """A path, or a name of the Hub, as an argument: one inside of the folders that does not look like a flag.

    Raises:
        FeraError: as `text_of`, or it leads out of the folders.
    """
    text = text_of(asked, name, needed=needed)
    if text:
        places.inside(text)
    return f"./{text}" if text.startswith("-") else text


def number_of(asked: Mapping[str, Any], name: str, kind: type[int] | type[float] = int) -> str:
    """A number that was sent, as it is typed in a command; empty where there is none.

    Raises:
        FeraError: it is none.
    """
    text = text_of(asked, name)
    try:
        if text and not abs(kind(text)) < float("inf"):
            raise ValueError
    except ValueError:
        raise FeraError(f"{name} {text[:40]} is no {'whole ' if kind is int else ''}number") from None
    return text
