"""AnyFlow: frames before the channels, each with a timestep of its own."""

import torch
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    DiffusionPipeline,
    FlowMapEulerDiscreteScheduler,
)
from torch import Tensor

from models import wan
from models.case import Case, frames_as_channels
from models.inputs import embeddings

CALL = {name: value for name, value in wan.CALL_I2V.items() if name != "image"} | {"num_frames": 9}
OTHER_PROMPT = {"prompt_embeds": embeddings(2, 1, 16, 64)}


def components() -> dict[str, object]:
    """What both pipelines share."""
    return wan.components() | {"scheduler": FlowMapEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0)}


def make_pipeline() -> AnyFlowPipeline:
    """All frames at once."""
    torch.manual_seed(0)
    return AnyFlowPipeline(**components(), transformer=AnyFlowTransformer3DModel(**wan.SETTINGS).eval())


def make_chunks() -> AnyFlowFARPipeline:
    """Frames in chunks, one after the other; here one, after which nothing is kept for others."""
    torch.manual_seed(0)
    transformer = AnyFlowFARTransformer3DModel(**wan.SETTINGS, chunk_partition=(3,), full_chunk_limit=1)
    return AnyFlowFARPipeline(**components(), transformer=transformer.eval())


def drawn(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Without the given frame, frames as channels."""
    return frames_as_channels(pipe, latents[:, 1:])


CASES = [
    Case("anyflow", make_pipeline, CALL, OTHER_PROMPT, frames_as_channels, copies=2),
    Case(
        "anyflow-video",
        make_pipeline,
        CALL | {"video_latents": embeddings(3, 1, 1, 16, 4, 6)},
        {"video_latents": embeddings(4, 1, 1, 16, 4, 6)},
        drawn,
        copies=2,
    ),
    Case("anyflow-far", make_chunks, CALL, OTHER_PROMPT, frames_as_channels, copies=2),
]
