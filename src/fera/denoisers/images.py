"""Denoisers that draw pictures.

A class's default targets are the attention projections, as in diffusers' training scripts; `JOINT_ATTENTION` has those
of the text stream too.
"""

from functools import partial

from fera.denoisers import layouts
from fera.denoisers.registry import ATTENTION, FRACTION, Denoiser, add

JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

add(
    "UNet2DConditionModel",
    Denoiser(
        "sample",
        layouts.own_channels,
        pipelines=(
            "StableDiffusionPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionInstructPix2PixPipeline",
            "StableDiffusionXLPipeline",
        ),
    ),
)
add(
    "SD3Transformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, JOINT_ATTENTION, pipelines=("StableDiffusion3Pipeline",)),
)
add(
    "FluxTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        JOINT_ATTENTION,
        timestep_range=FRACTION,
        pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxFillPipeline", "FluxKontextPipeline"),
    ),
)
add(
    "Flux2Transformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        # Single-stream blocks fuse what goes in. Their `to_out` cannot be named by its end: others' are containers.
        (*JOINT_ATTENTION, "to_qkv_mlp_proj"),
        timestep_range=FRACTION,
        pipelines=("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline"),
    ),
)
add(
    "ChromaTransformer2DModel",
    Denoiser(
        "hidden_states", layouts.packed_by_ids, JOINT_ATTENTION, timestep_range=FRACTION, pipelines=("ChromaPipeline",)
    ),
)
add(
    "Krea2Transformer2DModel",
    Denoiser(
        "hidden_states",
        partial(layouts.packed_by_ids, ids="position_ids"),
        timestep_range=FRACTION,
        pipelines=("Krea2Pipeline",),
    ),
)
add(
    "QwenImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_shapes,
        JOINT_ATTENTION,
        timestep_range=FRACTION,
        pipelines=(
            "QwenImagePipeline",
            "QwenImageEditPipeline",
            "QwenImageEditPlusPipeline",
            "QwenImageLayeredPipeline",
        ),
    ),
)
add(
    "PixArtTransformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, pipelines=("PixArtAlphaPipeline",)),
)
add(
    "SanaTransformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, pipelines=("SanaPipeline",)),
)
add(
    "Lumina2Transformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, timestep_range=(1.0, 0.0), pipelines=("Lumina2Pipeline",)),
)
add(
    "AuraFlowTransformer2DModel",
    Denoiser(
        "hidden_states", layouts.own_channels, JOINT_ATTENTION, timestep_range=FRACTION, pipelines=("AuraFlowPipeline",)
    ),
)
add(
    "HunyuanDiT2DModel",
    Denoiser("hidden_states", layouts.own_channels, pipelines=("HunyuanDiTPipeline",)),
)
add(
    "HunyuanImageTransformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, JOINT_ATTENTION, pipelines=("HunyuanImagePipeline",)),
)
add(
    "HiDreamImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        ("to_q", "to_k", "to_v", "to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t"),
        timestep="timesteps",
        pipelines=("HiDreamImagePipeline",),
    ),
)
add(
    "CogView4Transformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, pipelines=("CogView4Pipeline",)),
)
add(
    "ZImageTransformer2DModel",
    Denoiser(
        "x", layouts.listed, timestep="t", timestep_range=(1.0, 0.0), pipelines=("ZImagePipeline", "ZImageOmniPipeline")
    ),
)
