"""ChronoEdit: a picture to the video of its edit."""

from fera.models import layouts_video
from fera.models.registry import Denoiser, add

add(
    "ChronoEditTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        beside=("ffn.net.0.proj", "ffn.net.2"),
        pipelines=("ChronoEditPipeline",),
    ),
)
