"""LoRAs of `fera export --schedule` in ComfyUI: each acts while the latent is as noisy as where it was made for."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fera.comfyui.acting import ExpertLayers
from fera.comfyui.experts import Experts
from fera.comfyui.latent import noise_level_of
from fera.comfyui.layers import Place, place_at
from fera.errors import FeraError

SCHEDULE = "schedule.json"
# How the names of text encoders' layers begin in the formats of `fera export`.
_TEXT = ("lora_te", "text_encoder")


@dataclass(frozen=True)
class SchedulePart:
    """One LoRA of a schedule.

    Args:
        file: its file.
        noisiest: noise level of the first step that it serves, 0 (clean) to 1 (pure noise).
        cleanest: that of the last.
    """

    file: Path
    noisiest: float
    cleanest: float


def read_schedule(path: Path) -> list[SchedulePart]:
    """The LoRAs of a `schedule.json`, in the order of denoising.

    Raises:
        FeraError: it is no schedule, is damaged, or of a version of fera that did not write noise levels.
    """
    try:
        loras = json.loads(path.read_text("utf-8"))["loras"]
        parts = [(str(entry["file"]), entry.get("noise_levels")) for entry in loras]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise FeraError(f"{path} is no schedule, which is the schedule.json of fera export --schedule") from error
    found = []
    for name, levels in parts:
        if levels is None:
            raise FeraError(f"{path} has no noise levels: write it again, by fera export --schedule of this version")
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise FeraError(f"{path} names {name!r}: a schedule's LoRAs lie in its own folder")
        if not levels or not all(isinstance(level, int | float) and math.isfinite(level) for level in levels):
            raise FeraError(f"{path} is damaged: noise levels of {name} are {levels!r}")
        found.append(SchedulePart(path.parent / name, max(levels), min(levels)))
    if not found or any(before.cleanest <= after.noisiest for before, after in zip(found, found[1:], strict=False)):
        raise FeraError(f"{path} is damaged: its LoRAs do not follow each other from noise to picture")
    return found


def bounds_of(parts: Sequence[SchedulePart]) -> list[float]:
    """Noise levels above which each of the LoRAs acts: halfway between the steps of two neighbours; the last has none.

    Denoising in the number of steps of the trace has each LoRA in the steps that it was made for, and another number
    of steps, or a sampler that spaces them otherwise, at the noise that it was made for.
    """
    middles = [(before.cleanest + after.noisiest) / 2 for before, after in zip(parts, parts[1:], strict=False)]
    return [*middles, -math.inf]


def read_lora(file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a LoRA: those for the denoiser, and those for the text encoders.

    Raises:
        FeraError: it is not there, or cannot be read.
    """
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise FeraError(f"{file} cannot be read ({error}); copy or export it again") from error
    text = {key: tensor for key, tensor in tensors.items() if key.startswith(_TEXT)}
    return {key: tensor for key, tensor in tensors.items() if key not in text}, text


def lora_places(
    file: Path, tensors: Mapping[str, Tensor], names: Mapping[str, Any], model: nn.Module, load_lora: Any
) -> list[Place]:
    """Where a plain LoRA acts in ComfyUI's model.

    Args:
        file: its file, for messages.
        tensors: its tensors for the denoiser.
        names: names of a LoRA file to the model's weights, as `comfy.lora.model_lora_keys_unet` gives them.
        model: ComfyUI's.
        load_lora: `comfy.lora.load_lora`.

    Raises:
        FeraError: a layer has no place in the model, or another size.
    """
    modules = dict(model.named_modules())
    places, left = [], set(tensors)
    for target, lora in load_lora(dict(tensors), dict(names), log_missing=False).items():
        up, down, alpha = lora.weights[:3]
        scale = 1.0 if alpha is None else alpha / len(down)
        key = target[0] if isinstance(target, tuple) else target
        place = place_at(key, Experts(down.float(), up.float() * scale), target, modules)
        if place is not None:
            places.append(place)
            left -= lora.loaded_keys
    if missing := sorted(key for key in left if not key.endswith(".alpha")):
        raise FeraError(
            f"{len(missing)} of the {len(tensors)} tensors of {file} have no place in this model, such as "
            f"{missing[0]}. "
            "Export the schedule with --for comfyui, and load it with the base that the adapter was trained on"
        )
    return places


@dataclass(frozen=True)
class Scheduled:
    """A wrapper of ComfyUI's `apply_model` with the LoRA that a call's noise asks for.

    Args:
        layers: each LoRA's, in the order of denoising.
        bounds: as `bounds_of`.
        strength: multiplies what they add.
    """

    layers: Sequence[ExpertLayers]
    bounds: Sequence[float]
    strength: float = 1.0

    def free(self, *arguments: Any) -> None:
        """Let go of the weights on the device."""
        for layers in self.layers:
            layers.free()

    def chosen(self, level: float) -> int:
        """Number of the LoRA, from 0, that acts at a noise level."""
        return next(index for index, bound in enumerate(self.bounds) if level > bound)

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """One call of `apply_model`, whose arguments these are: see `Routed`."""
        options = transformer_options or {}
        model = executor.class_obj
        acting: Any = nullcontext()
        if self.strength:
            layers = self.layers[self.chosen(float(noise_level_of(model.model_sampling, t).max()))]
            acting = layers.acting(model, torch.full((len(x), 1), self.strength, device=x.device), options)
        with acting:
            output: Tensor = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        return output
