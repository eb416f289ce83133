"""A base whose large parts wait in its files: each is loaded for its use, and let go after it."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import nn

from fera.demo import base_path
from fera.errors import FeraError
from fera.models.registry import known
from fera.pipelines.base import EMOJI, lay_out, load_base, loading, parted, read_index
from fera.pipelines.empty_parts import emptied, is_empty
from fera.pipelines.modular_bases import is_modular
from fera.pipelines.single_file import single_file
from fera.pipelines.weight_files import remap

_LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}

Dtypes = dict[str, torch.dtype]


class Base:
    """A pipeline of which some parts may wait.

    Args:
        base: as `load_base` takes it.
        dtypes: of each part by name, and "default" for the others.
        revision: as `load_base` takes it.
        variant: likewise.

    Attributes:
        pipe: the pipeline. A part that waits is there without weights, and says `is_empty`.

    Raises:
        FeraError: as `load_base` does.
    """

    def __init__(self, base: str, dtypes: Dtypes, *, revision: str | None = None, variant: str | None = None) -> None:
        self._base, self._dtypes = base, dtypes
        self._revision, self._variant = revision, variant
        self._place, _ = parted(base)
        comes_whole = single_file(base) is not None or is_modular(self._place)
        given = {} if comes_whole else self._empty_parts()
        self.pipe: Any = self._load(given, laid_out=True)

    @property
    def waiting(self) -> list[str]:
        """Names of the parts that wait."""
        return [name for name, part in self.pipe.components.items() if is_empty(part)]

    def bring(self, names: Iterable[str] | None = None, *, dtype: torch.dtype | None = None) -> None:
        """Load parts that wait, to stay.

        Args:
            names: which, all that wait when left out; others among them are there already.
            dtype: in the place of the dtype that they would have.

        Raises:
            FeraError: one cannot be loaded.
        """
        wanted = [name for name in self.waiting if names is None or name in {*names}]
        if not wanted:
            return
        others = {name: part for name, part in self.pipe.components.items() if name not in wanted}
        pipe = self._load(others, {} if dtype is None else dict.fromkeys(wanted, dtype), laid_out=False)
        for name in wanted:
            part = getattr(pipe, name)
            # First: what is copied then goes, mapping and all, weight by weight.
            remap(part, self.weight_files(name))
            lay_out(part)
            setattr(self.pipe, name, part)

    @contextmanager
    def using(self, names: Iterable[str]) -> Iterator[None]:
        """Parts with their weights inside the block; those that waited before it wait again after it."""
        waiting = {name: getattr(self.pipe, name) for name in self.waiting if name in {*names}}
        self.bring(waiting)
        try:
            yield
        finally:
            for name, part in waiting.items():
                setattr(self.pipe, name, part)
            if waiting:
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    def files(self, name: str) -> list[Path]:
        """Files of a part, its configuration among them; none where they are not known, or one file holds all parts."""
        if single_file(self._base) is not None or is_modular(self._place):
            return []
        if self._base == EMOJI:
            folder = Path(base_path())
        elif Path(self._place).is_dir():
            folder = Path(self._place)
        else:
            found = try_to_load_from_cache(self._place, "model_index.json", revision=self._revision)
            if not isinstance(found, str):
                return []
            folder = Path(found).parent
        return sorted(path for path in (folder / name).glob("*") if path.is_file())

    def weight_files(self, name: str) -> list[Path]:
        """The safetensors files of a part, of the variant that is loaded; none where they are not known."""
        found = [path for path in self.files(name) if path.suffix == ".safetensors"]
        mine = [path for path in found if self._variant is not None and f".{self._variant}" in path.name]
        return mine or found

    def _load(self, given: dict[str, Any], dtypes: Dtypes | None = None, *, laid_out: bool) -> Any:
        return load_base(
            self._base,
            revision=self._revision,
            variant=self._variant,
            dtype=self._dtypes | (dtypes or {}),
            given=given,
            laid_out=laid_out,
        )

    def _empty_parts(self) -> dict[str, nn.Module]:
        """Stand-ins for all parts whose configuration says enough: models of diffusers and transformers."""
        folder = str(base_path()) if self._base == EMOJI else self._place
        found: dict[str, nn.Module] = {}
        for name, value in read_index(folder, revision=self._revision).items():
            if isinstance(value, list | tuple) and len(value) == 2 and value[0] in _LIBRARIES:
                cls = getattr(_LIBRARIES[value[0]], value[1] or "", None)
                if isinstance(cls, type) and issubclass(cls, nn.Module):
                    with loading(self._base):
                        part = _on_meta(cls, folder, name, self._revision)
                    if part is not None:
                        found[name] = emptied(part, name, self._dtypes.get(name, self._dtypes["default"]))
        return found


def _on_meta(cls: Any, folder: str, name: str, revision: str | None) -> nn.Module | None:
    """A part on the meta device; None of one that is quantized, whose layers are others."""
    if hasattr(cls, "load_config"):
        config = cls.load_config(folder, subfolder=name, revision=revision)
        is_quantized = "quantization_config" in config
        method = (config.get("quantization_config") or {}).get("quant_method")
        if method == "sdnq" and cls.__name__ in known():
            raise FeraError(
                f"base {folder}: its {name} is quantized by SDNQ, whose layers give no gradient; take the unquantized "
                'base, and quantization = "8bit", "4bit" or "fp8"'
            )
    else:
        config = cls.config_class.from_pretrained(folder, subfolder=name, revision=revision)
        is_quantized = getattr(config, "quantization_config", None) is not None
    if is_quantized:
        return None
    with torch.device("meta"):
        return cls.from_config(config) if hasattr(cls, "load_config") else cls(config)
