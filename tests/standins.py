"""Stand-ins for libraries that another tool imports and no test of ours uses."""

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any


def stand_in_for(*libraries: str) -> None:
    """Let libraries, and all in them, be imported; nothing of them can be used."""
    # First, for transformers takes a stand-in for torchvision.
    from diffusers import StableDiffusionPipeline  # noqa: F401

    sys.meta_path.append(_Finder(libraries))


class _Standin(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, libraries: tuple[str, ...]) -> None:
        self._libraries = libraries

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self._libraries:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Standin(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to run."""
