"""LTX-Video and LTX-2."""

from fera.models import layouts_video
from fera.models.registry import Denoiser, add

add(
    "LTXVideoTransformer3DModel",
    Denoiser("hidden_states", layouts_video.packed_frames, pipelines=("LTXPipeline", "LTXImageToVideoPipeline")),
)

add(
    "LTX2VideoTransformer3DModel",  # draws sound too; its video routes both
    Denoiser("hidden_states", layouts_video.packed_frames, pipelines=("LTX2Pipeline",)),
)
