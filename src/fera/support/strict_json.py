"""JSON that every reader takes: it has no word for a number that is not finite."""

import json
import math
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON, with null where a number is not finite.

    Args:
        value: dicts with keys that JSON has, lists, tuples, strings, numbers, booleans and None.
        indent: spaces a level; all on one line when left out.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(held) for held in value]
    return value
