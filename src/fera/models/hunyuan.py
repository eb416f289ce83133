"""HunyuanDiT and HunyuanImage."""

from functools import partial

from fera.models import layouts, rows
from fera.models.registry import JOINT_ATTENTION, Denoiser, add

add(
    "HunyuanDiT2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        pipelines=("HunyuanDiTPipeline",),
        rows={"text_embedder": partial(rows.text_tokens, name="encoder_hidden_states_t5")},
    ),
)

add(
    "HunyuanImageTransformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, JOINT_ATTENTION, pipelines=("HunyuanImagePipeline",)),
)
