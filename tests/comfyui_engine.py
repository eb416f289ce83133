"""ComfyUI's own code, from a folder that `make test` fills, and what a small model of its classes is beside diffusers'.

The environment variable COMFYUI names the folder: ComfyUI itself in `ComfyUI`, what it imports in `packages`. What it
imports of torchvision and torchaudio, no model here uses; neither has a build for every PyTorch, so stand-ins do.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from standins import stand_in_for
from torch import Tensor, nn


def folder() -> Path:
    """Where ComfyUI and what it imports are."""
    return Path(os.environ["COMFYUI"]).resolve()


def prepare() -> None:
    """Make ComfyUI importable."""
    stand_in_for("torchvision", "torchaudio")
    sys.path.append(str(folder() / "packages"))


@cache
def engine() -> Any:
    """ComfyUI's package `comfy`, on the CPU."""
    if "comfy.model_base" in sys.modules:  # in ComfyUI's own process
        return sys.modules["comfy"]
    prepare()
    sys.path[:0] = [str(folder() / "ComfyUI")]
    arguments, sys.argv = sys.argv, ["comfyui", "--cpu", "--disable-all-custom-nodes"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.lora
        import comfy.model_base
        import comfy.model_patcher
        import comfy.sample
        import comfy.samplers
        import comfy.sd
        import comfy.supported_models
        import comfy.utils
    finally:
        sys.argv = arguments
    return comfy


@dataclass(frozen=True)
class Twin:
    """One denoiser in diffusers and in ComfyUI, with the same weights.

    Args:
        denoiser: diffusers'.
        model: ComfyUI's model, which holds its own.
        latent: shape of a latent in ComfyUI, without the batch.
        predict: (denoiser, scaled latent as ComfyUI has it, noise level 0 to 1, context) to the prediction, likewise.
        context: shape of the text states.
        extra: what ComfyUI's model is told besides.
        targets: layers to adapt: of as many kinds as ComfyUI's map has; None for the class's defaults.
        sound: what lies behind the latent in one row with it, (1, C, L, F); None for most.
        has_frames_as_rows: whether the first axis of a latent, its frames, is one with the batch in ComfyUI.
        rounding: by how much two answers may differ; more than float's where one of the two rounds on the way.
    """

    denoiser: nn.Module
    model: Any
    latent: tuple[int, ...]
    predict: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    context: tuple[int, int]
    extra: Mapping[str, Any] = field(default_factory=dict)
    targets: Sequence[str] | None = None
    sound: Tensor | None = None
    has_frames_as_rows: bool = False
    rounding: float = 1e-4

    def patcher(self) -> Any:
        """A fresh patcher of ComfyUI's."""
        device = torch.device("cpu")
        return engine().model_patcher.ModelPatcher(self.model, load_device=device, offload_device=device)


def copy_weights(denoiser: nn.Module, model: Any, names: Mapping[str, Any], beside: tuple[str, ...] = ()) -> None:
    """Give ComfyUI's model the weights of diffusers'.

    Args:
        denoiser: diffusers'.
        model: ComfyUI's.
        names: diffusers' names to ComfyUI's, as its own maps have them: a name, or one with a range and a function.
        beside: how names begin of what is no part of diffusers' denoiser.
    """
    own = model.diffusion_model.state_dict()
    left = set(own)
    for name, tensor in denoiser.state_dict().items():
        if name not in names:
            raise AssertionError(f"{name} of {type(denoiser).__name__} has no place in ComfyUI's model")
        key, span, turn = (
            (*names[name], None, None)[:3] if isinstance(names[name], tuple) else (names[name], None, None)
        )
        value = tensor if turn is None else turn(tensor)
        whole = own[key] if span is None else own[key].narrow(*span)
        whole.copy_(value.reshape(whole.shape))
        left.discard(key)
    if left := {name for name in left if not name.startswith(beside)}:
        raise AssertionError(f"ComfyUI's model has more: {sorted(left)[:5]}")
