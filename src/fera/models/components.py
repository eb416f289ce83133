"""The denoisers of a pipeline, and the blocks that a denoiser repeats."""

from typing import Any

from torch import nn

from fera.errors import FeraError
from fera.models.registry import is_known

# A diffusers pipeline, or a denoiser, or a PeftModel around one.
Target = Any


# What UNets repeat besides the blocks that diffusers names, which are those of their attention.
_CONVOLUTIONAL = ("ResnetBlock2D",)

# What the only component of a denoiser without a pipeline is called.
BARE = "denoiser"


def denoisers(target: Target) -> dict[str, nn.Module]:
    """Denoisers that fera knows in a pipeline, by component name.

    Args:
        target: a pipeline, whose denoiser may be in a PeftModel; a denoiser, or a PeftModel around one, counts as the
            single component "denoiser".

    Raises:
        FeraError: there is none.
    """
    target = _unwrapped(target)
    if isinstance(target, nn.Module):
        return {BARE: target}
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        raise FeraError(f"expected a diffusers pipeline or a denoiser, got a {type(target).__name__}")
    modules = {name: _unwrapped(module) for name, module in components.items()}
    found = {name: module for name, module in modules.items() if is_known(module)}
    if not found:
        have = ", ".join(f"{name} ({type(value).__name__})" for name, value in components.items() if value is not None)
        raise FeraError(
            f"fera knows none of this {type(target).__name__}'s components as a denoiser: {have}. "
            "For a denoiser of your own, call fera.register_denoiser first"
        )
    return found


def _unwrapped(module: Any) -> Any:
    """What `torch.compile` and a PeftModel have wrapped; anything else as it is."""
    module = uncompiled(module)
    # By its method: PEFT is not imported.
    return uncompiled(module.get_base_model()) if hasattr(module, "get_base_model") else module


def uncompiled(module: Any) -> Any:
    """What `torch.compile` has wrapped; anything else as it is."""
    return getattr(module, "_orig_mod", module)


def repeated_blocks(denoiser: nn.Module) -> set[str]:
    """Classes of the blocks that a denoiser repeats, by name; none where diffusers does not say."""
    named: Any = getattr(denoiser, "_repeated_blocks", None) or getattr(denoiser, "_no_split_modules", None)
    return {type(module).__name__ for module in denoiser.modules()} & {*(named or ())}


def offloadable_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The blocks that a denoiser repeats, convolutional ones too, in order and none inside another.

    None where diffusers does not say which they are.

    Args:
        denoiser: with or without adapters.
    """
    names = repeated_blocks(denoiser)
    if not names:
        return []
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in denoiser.modules():
        if type(module).__name__ in {*names, *_CONVOLUTIONAL} and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found
