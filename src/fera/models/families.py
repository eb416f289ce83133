"""What training must know about a family of pipelines. One entry a class of pipelines."""

from collections.abc import Callable
from typing import Any

from torch import nn

from fera.errors import FeraError
from fera.models.components import denoisers
from fera.models.family import Conditions, Family
from fera.models.pairs import Pairs
from fera.models.sound import Sound
from fera.models.video import Video

__all__ = [
    "FAMILIES",
    "MODELS",
    "Conditions",
    "Family",
    "add_family",
    "call_of",
    "family_of",
    "latent_scale",
    "native_resolution",
    "pairs_of",
    "size_multiple",
    "sound_of",
    "trained_denoiser",
    "video_of",
]

# Of pipelines that do not say what they were made for.
_RESOLUTION = 1024

# Class of a pipeline to what makes its family: some need to know the pipeline's sizes.
FAMILIES: dict[str, Callable[[Any], Family]] = {}
# Class of a pipeline to what people call its models.
MODELS: dict[str, str] = {}


def add_family(pipeline: str, make: Callable[[Any], Family], model: str) -> None:
    """Let training know the pipelines of a class.

    Args:
        pipeline: name of the class.
        make: a pipeline to its family.
        model: what people call the models that it is the pipeline of.
    """
    FAMILIES[pipeline] = make
    MODELS[pipeline] = model


def family_of(pipe: Any) -> Family:
    """The family of a pipeline.

    Raises:
        FeraError: training does not know it, or cannot train this one.
    """
    family = _find(pipe)
    if family is not None:
        if family.refusal:
            raise FeraError(family.refusal)
        return family
    raise FeraError(
        f"fera cannot train a {type(pipe).__name__} yet; it can train: {', '.join(sorted(FAMILIES))}. "
        "Your own training loop can: put a fera.FeraConfig into the denoiser with peft.get_peft_model"
    )


def call_of(pipe: Any, guidance_scale: float) -> dict[str, Any]:
    """Arguments of a pipeline with which it draws what it is told, with guidance.

    Args:
        pipe: the pipeline, of any class.
        guidance_scale: strength of guidance, as the pipeline takes it.
    """
    family = _find(pipe)
    if family is None:
        return {"guidance_scale": guidance_scale}
    call = {name: value for name, value in family.call.items() if name != "use_resolution_binning"}
    if family.guidance is not None:
        call[family.guidance] = guidance_scale
    if family.guidance == "true_cfg_scale" and guidance_scale > 1:
        call["negative_prompt"] = ""  # without one there is no guidance
    return call


def pairs_of(pipe: Any) -> Pairs | None:
    """How a pipeline is given source pictures; None where it takes none, or fera does not know it."""
    family = _find(pipe)
    return None if family is None else family.pairs


def trained_denoiser(pipe: Any, component: str | None) -> tuple[str, nn.Module]:
    """The name in a pipeline of the denoiser that a run trains, and the denoiser.

    Args:
        pipe: the pipeline.
        component: its name; None takes the only one, or the first where the others are no alternative to it.

    Raises:
        FeraError: there is none of that name, or there are several, each for noise levels of its own, and none is
            named.
    """
    found, ranges = denoisers(pipe), family_of(pipe).ranges
    if component is None and ranges:
        parts = [f"{name} (noise levels {low:g} to {high:g})" for name, (low, high) in ranges.items()]
        raise FeraError(
            f"this {type(pipe).__name__} has a denoiser for each range of noise: {', '.join(parts)}. Set "
            "adapter.component to one of them; a run trains one, and adapters of both draw together"
        )
    if component is not None and component not in (ranges or found):
        raise FeraError(f"adapter.component is {component!r}; this {type(pipe).__name__} has: {', '.join(found)}")
    name = component or next(iter(found))
    return name, found[name]


def video_of(pipe: Any) -> Video | None:
    """What a pipeline of videos is made for; None of one of pictures, and of one that is not known."""
    family = _find(pipe)
    return None if family is None else family.video


def sound_of(pipe: Any) -> Sound | None:
    """What a pipeline of sound is made for; None of the others, and of one that is not known."""
    family = _find(pipe)
    return None if family is None else family.sound


def latent_scale(pipe: Any) -> int:
    """Pixels a side that become one pixel of the latent."""
    return family_of(pipe).scale or int(pipe.vae_scale_factor)


def native_resolution(pipe: Any) -> int:
    """Side in pixels of the square pictures that a pipeline was made for."""
    if (known := family_of(pipe).resolution) is not None:
        return known
    denoiser: Any = next(iter(denoisers(pipe).values()))
    native = denoiser.config.get("sample_size") or getattr(pipe, "default_sample_size", None)
    if native is None:
        return _RESOLUTION
    return int(native if isinstance(native, int) else native[0]) * int(pipe.vae_scale_factor)


def size_multiple(pipe: Any) -> int:
    """What the sides of pictures, in pixels, must be a multiple of."""
    denoiser: Any = next(iter(denoisers(pipe).values()))
    patch = denoiser.config.get("patch_size") or 1
    side = patch if isinstance(patch, int) else max(patch)
    return latent_scale(pipe) * side * family_of(pipe).packing


def _find(pipe: Any) -> Family | None:
    for cls in type(pipe).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__](pipe)
    return None
