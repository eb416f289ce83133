"""Names of a package that are imported when they are asked for (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that hands names on from its modules.

    Args:
        package: its name.
        homes: a name to the module that defines it; a module's own name stands for the module itself.

    Returns:
        A function from a name to its value. It raises AttributeError for a name that is not there, and ImportError,
        with the cause, where the module cannot be imported: Python would hide an AttributeError from within.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        try:
            module = import_module(home)
            return module if home == f"{package}.{name}" else getattr(module, name)
        except AttributeError as error:
            raise ImportError(f"{package}.{name} cannot be imported from {home}: {error}") from error

    return get
