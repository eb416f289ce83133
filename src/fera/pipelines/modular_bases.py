"""Bases that were saved by a modular pipeline of diffusers: their parts, in the plain pipeline of the same model.

Training and drawing call a plain pipeline; a modular one has the same parts, and blocks in the place of its code.
"""

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModularPipeline

from fera.errors import FeraError

INDEX = "modular_model_index.json"
# Where the name is not that of the plain pipeline with a word in it.
_PLAIN = {
    "Flux2KleinBaseModularPipeline": "Flux2KleinPipeline",
    "Krea2TurboModularPipeline": "Krea2Pipeline",
    "QwenImage21TurboModularPipeline": "QwenImage21Pipeline",
    "Wan22ModularPipeline": "WanPipeline",
    "WanImage2VideoModularPipeline": "WanImageToVideoPipeline",
    "Wan22Image2VideoModularPipeline": "WanImageToVideoPipeline",
}


def is_modular(place: str) -> bool:
    """Whether a base is a folder that a modular pipeline wrote."""
    folder = Path(place)
    return (folder / INDEX).is_file() and not (folder / "model_index.json").is_file()


def modular_index(place: str) -> dict[str, Any]:
    """What a modular pipeline's index says, as the index of the plain pipeline would.

    Raises:
        FeraError: it cannot be read, or diffusers has no plain pipeline of that model.
    """
    try:
        index = json.loads((Path(place) / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FeraError(f"base {place}: its {INDEX} cannot be read: {error}") from None
    if not isinstance(index, dict):
        raise FeraError(f"base {place}: its {INDEX} is no JSON object")
    name = str(index.get("_class_name"))
    plain = _PLAIN.get(name, name.replace("Modular", ""))
    if "Modular" not in name or not hasattr(diffusers, plain):
        raise FeraError(
            f"base {place} is of a {name}, and diffusers {diffusers.__version__} has no plain pipeline of its parts, "
            "which fera trains and draws with"
        )
    parts = {key: value[:2] for key, value in index.items() if isinstance(value, list) and len(value) == 3}
    settings = {key: value for key, value in index.items() if not isinstance(value, list) and key[0] != "_"}
    return {"_class_name": plain, **settings, **parts}


def load_modular(place: str, pipeline: Any, dtype: torch.dtype | dict[str, torch.dtype]) -> Any:
    """Load a modular pipeline's parts into a plain one.

    Args:
        place: the folder.
        pipeline: class of the plain pipeline; None for the one of the same model.
        dtype: as `load_base` takes it.

    Raises:
        FeraError: as `modular_index`; a part is missing. diffusers raises other errors.
    """
    index = modular_index(place)
    cls: Any = pipeline or getattr(diffusers, index["_class_name"])
    modular = ModularPipeline.from_pretrained(place)
    # The index has the path that it was saved to; what is here counts.
    here = {name: place for name in modular.component_names if (Path(place) / name).is_dir()}
    modular.load_components(torch_dtype=dtype, pretrained_model_name_or_path=here)
    taken = inspect.signature(cls.__init__).parameters
    parts = {name: part for name, part in modular.components.items() if name in taken and part is not None}
    optional = {*cls._optional_components}
    absent = {
        name: None
        for name, parameter in taken.items()
        if name not in parts and name in optional and parameter.default is inspect.Parameter.empty
    }
    needed = [name for name, each in taken.items() if name != "self" and each.default is inspect.Parameter.empty]
    if lacking := [name for name in needed if name not in parts and name not in absent]:
        raise FeraError(f"base {place} lacks {', '.join(lacking)}, which a {cls.__name__} has")
    settings = {name: value for name, value in modular.config.items() if name in taken and name not in parts}
    return cls(**parts, **absent, **{name: value for name, value in settings.items() if name not in absent})
