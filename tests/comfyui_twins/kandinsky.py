"""Kandinsky 5, which diffusers gives channels last."""

from typing import Any

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names

_SETTINGS: dict[str, Any] = {
    **{"image_model": "kandinsky5", "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 32, "in_text_dim2": 32},
    **{"time_dim": 16, "model_dim": 32, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 1},
    **{"axes_dims": (4, 4, 8), "dtype": torch.float32},
}
# diffusers brings turned queries and keys to bfloat16, whatever the precision of the model; ComfyUI does not.
_ROUNDING = 2e-3


def kandinsky5() -> Twin:
    """The transformer for pictures."""
    comfy = engine()
    settings = _SETTINGS | {"visual_embed_dim": 16, "rope_scale_factor": (1.0, 1.0, 1.0)}
    model = comfy.model_base.Kandinsky5Image(comfy.supported_models.Kandinsky5Image(settings), device="cpu")
    return _twin(model, (4, 16, 16), (1.0, 1.0, 1.0))


def kandinsky5_video() -> Twin:
    """The transformer for videos, with channels of a given frame and of its mask behind the latent's."""
    comfy = engine()
    settings = _SETTINGS | {"visual_embed_dim": 36, "rope_scale_factor": (1.0, 2.0, 2.0)}
    model = comfy.model_base.Kandinsky5(comfy.supported_models.Kandinsky5(settings), device="cpu")
    given = torch.randn(1, 5, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    given[:, -1] = 0
    given[:, -1, 0] = 1
    return _twin(model, (4, 3, 8, 8), (1.0, 2.0, 2.0), given)


def _twin(model: Any, shape: tuple[int, ...], scale: tuple[float, float, float], given: Tensor | None = None) -> Twin:
    from models.kandinsky5 import components

    denoiser: Any = components(visual_cond=given is not None)["transformer"]
    copy_by_names(denoiser, model, {"(.+)": r"\1"})
    pooled = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        frames = latent if latent.ndim == 5 else latent[:, :, None]
        if given is not None:
            frames = torch.cat([frames, given.expand(len(latent), -1, -1, -1, -1)], dim=1)
        sides = frames.shape[2], frames.shape[3] // 2, frames.shape[4] // 2
        found = denoiser(
            hidden_states=frames.movedim(1, -1),
            encoder_hidden_states=context,
            pooled_projections=pooled.expand(len(latent), -1),
            timestep=level * 1000,
            visual_rope_pos=[torch.arange(side) for side in sides],
            text_rope_pos=torch.arange(context.shape[1]),
            scale_factor=scale,
        ).sample.movedim(-1, 1)
        return found if latent.ndim == 5 else found[:, :, 0]

    told = {"y": pooled} | ({} if given is None else {"c_concat": given})
    return Twin(denoiser, model, shape, predict, (5, 32), told, rounding=_ROUNDING)
