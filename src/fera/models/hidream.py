"""HiDream."""

from fera.models import layouts, rows
from fera.models.registry import Denoiser, add

add(
    "HiDreamImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        ("to_q", "to_k", "to_v", "to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t"),
        timestep="timesteps",
        pipelines=("HiDreamImagePipeline",),
        rows={"experts": rows.unknown},
    ),
)
