"""Denoisers that draw videos or sound, and the two of Stable Cascade."""

from fera.denoisers import layouts, layouts_video
from fera.denoisers.registry import FRACTION, Denoiser, add

add(
    "WanTransformer3DModel",
    Denoiser("hidden_states", layouts_video.channels_first, pipelines=("WanPipeline", "WanImageToVideoPipeline")),
)
add(
    "HunyuanVideoTransformer3DModel",
    Denoiser("hidden_states", layouts_video.channels_first, pipelines=("HunyuanVideoPipeline",)),
)
add(
    "LTXVideoTransformer3DModel",
    Denoiser("hidden_states", layouts_video.packed_frames, pipelines=("LTXPipeline", "LTXImageToVideoPipeline")),
)
add(
    "LTX2VideoTransformer3DModel",  # draws sound too; its video routes both
    Denoiser("hidden_states", layouts_video.packed_frames, pipelines=("LTX2Pipeline",)),
)
add(
    "CogVideoXTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.frames_first,
        pipelines=("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"),
    ),
)
add(
    "StableAudioDiTModel",
    Denoiser(
        "hidden_states",
        layouts_video.sound,
        timestep_range=(-1.56, 1.1),  # log(sigma) / 4 of its scheduler
        pipelines=("StableAudioPipeline",),
    ),
)
add(
    "StableCascadeUNet",
    Denoiser(
        "sample",
        layouts.own_channels,
        timestep="timestep_ratio",
        timestep_range=FRACTION,
        pipelines=("StableCascadePriorPipeline", "StableCascadeDecoderPipeline"),
    ),
)
