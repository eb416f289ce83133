"""Makes PEFT know FeRA, as soon as PEFT is there.

PEFT takes seconds to import, and `import fera` must not. So where PEFT is loaded already it learns of FeRA at once;
where it is not, a finder at the front of `sys.meta_path` waits for its import and registers right after it.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import cast


def register_with_peft() -> None:
    """Register FeRA with PEFT: now if PEFT is loaded, else right after it is."""
    if "peft" in sys.modules:
        _register()
    elif not any(isinstance(finder, _PeftFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PeftFinder())


def _register() -> None:
    import aenum
    from peft import PeftType
    from peft.utils import register_peft_method

    if "FERA" in PeftType.__members__:
        return
    # The settings and the model need the entry when they are imported.
    aenum.extend_enum(PeftType, "FERA", "FERA")

    from fera.tuner.config import FeraConfig
    from fera.tuner.model import FeraModel

    register_peft_method(name="fera", config_cls=FeraConfig, model_cls=FeraModel, prefix="lora_")


class _PeftFinder(MetaPathFinder):
    """Finds PEFT as the other finders do, and has its loader register FeRA at the end.

    It stays until PEFT is loaded: libraries ask whether PEFT can be found long before they import it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of PEFT with a loader that registers FeRA; None for any other module."""
        if fullname != "peft":
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = cast(Loader, _PeftLoader(spec.loader, self))
                return spec
        return None


class _PeftLoader:
    """A loader that does as another one, and registers FeRA after it has run the module."""

    def __init__(self, loader: Loader, finder: _PeftFinder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> object:
        # get_data, get_filename, is_package, ...: whatever the real loader offers.
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the real loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run PEFT, then register FeRA with it."""
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        # What is kept of the import is the real loader: `inspect` and `pkgutil` look for its kind.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        _register()
