"""What a router reads in ComfyUI: the latent as diffusers' denoiser would get it, and how noisy it is."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fera.errors import FeraError
from fera.models import known
from fera.models.layouts import unpack

# Their latents have 2 x 2 pixels an entry; diffusers' are what those pixels were.
_OF_BLOCKS = ("Flux2Transformer2DModel", "ErnieImageTransformer2DModel", "Ideogram4Transformer2DModel")
# Latents of videos, whose given frames are in the latent itself.
_WITH_GIVEN_FRAMES = ("WanTransformer3DModel", "LTXVideoTransformer3DModel", "LTX2VideoTransformer3DModel")
# Videos of which it is told that their first frame is given.
_WITH_FIRST_FRAME = "HunyuanVideoTransformer3DModel"
# Videos whose frames are rows of the batch.
_WITH_FRAMES_AS_ROWS = "UNetSpatioTemporalConditionModel"
_WITH_MASKED_FRAMES = "Kandinsky5Transformer3DModel"


def frames_of(denoiser: str, num_video_frames: int | None) -> int:
    """How many rows of a call are one sample.

    Args:
        denoiser: class name, in diffusers, of the denoiser that the adapter was trained on.
        num_video_frames: as ComfyUI tells its model.
    """
    return num_video_frames or 1 if denoiser == _WITH_FRAMES_AS_ROWS else 1


def latent_of(
    denoiser: str,
    sampling: Any,
    sigma: Tensor,
    x: Tensor,
    denoise_mask: Tensor | None = None,
    latent_shapes: Sequence[Sequence[int]] | None = None,
    c_concat: Tensor | None = None,
    guiding_frame_index: Tensor | None = None,
) -> Tensor:
    """The latent of a call, as the router was trained on it.

    Args:
        denoiser: class name, in diffusers, of the denoiser that the adapter was trained on.
        sampling: ComfyUI's `model_sampling`.
        sigma: shape (B,).
        x: shape (B, C, H, W), (B, C, T, H, W) or (B, C, L), not scaled yet; or (B, 1, N), several latents in one row.
        denoise_mask: 0 where the latent is given, as ComfyUI hands it to models of videos; broadcastable to the latent.
        latent_shapes: of those in one row, with their batch; the first of them, the video, is read.
        c_concat: conditions that come behind the latent as channels; of Kandinsky 5's the last is read, a mask that is
            1 on frames that are given.
        guiding_frame_index: told of videos whose first frame is given in the latent.

    Returns:
        Shape (B, C, H, W) or (B, C, L); frames count as channels. What is given as a condition is zero.
    """
    latent: Tensor = sampling.calculate_input(sigma, x)
    if latent_shapes is not None and len(latent_shapes) > 1:
        sizes = tuple(latent_shapes[0])[1:]
        latent = latent[:, 0, : math.prod(sizes)].reshape(len(latent), *sizes)
    if denoise_mask is not None and denoiser in _WITH_GIVEN_FRAMES:
        latent = latent * (denoise_mask > 0)
    if c_concat is not None and denoiser == _WITH_MASKED_FRAMES:
        latent = latent * (1 - c_concat[:, -1:])
    if guiding_frame_index is not None and denoiser == _WITH_FIRST_FRAME:
        latent = latent[:, :, 1:]
    if latent.ndim == 5:
        latent = latent.flatten(1, 2)
    if denoiser in _OF_BLOCKS:
        latent = unpack(latent.flatten(2).transpose(1, 2), *latent.shape[2:])
    return latent


def noise_level_of(sampling: Any, sigma: Tensor, denoiser: str | None = None) -> Tensor:
    """How noisy a call's latent is.

    Args:
        sampling: ComfyUI's `model_sampling`.
        sigma: shape (B,).
        denoiser: class name, in diffusers, of the denoiser; needed where noise is counted as in EDM.

    Returns:
        Shape (B,), float32, 0 (clean) to 1 (pure noise), as diffusers' pipelines tell by their timesteps.

    Raises:
        FeraError: sigma goes beyond both, as in EDM sampling, whose adapters cannot read it but for those of bases
            that were trained so.
    """
    kinds = {kind.__name__ for kind in type(sampling).__mro__}
    clean, noise = known()[denoiser].timestep_range if denoiser in known() else (0.0, 1.0)
    if "CONST" in kinds:  # flow: sigma is the share of noise
        level = sigma.float()
    elif "ModelSamplingDiscrete" in kinds:
        level = sampling.timestep(sigma).float() / len(sampling.sigmas)
    elif "ModelSamplingContinuousV" in kinds:  # an angle, as a part of a right one
        level = sampling.timestep(sigma).float()
    elif "ModelSamplingContinuousEDM" in kinds and clean < 0:
        level = (sampling.timestep(sigma).float() - clean) / (noise - clean)
    else:
        raise FeraError(
            "the adapter's router reads the timestep, and this model's sampling has none (EDM); take the model's own "
            "sampling, or an adapter whose router_input has no timestep"
        )
    return level.reshape(-1)
