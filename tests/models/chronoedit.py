"""ChronoEdit: channels of the given picture and of a mask behind the latent's."""

import torch
from diffusers import ChronoEditPipeline, ChronoEditTransformer3DModel

from models import wan
from models.case import Case, frames_as_channels
from models.inputs import picture


def make_pipeline() -> ChronoEditPipeline:
    """A picture to the video of its edit."""
    torch.manual_seed(0)
    transformer = ChronoEditTransformer3DModel(**wan.SETTINGS | {"in_channels": 36}, image_dim=4)
    return ChronoEditPipeline(**wan.components(), **wan.make_vision(), transformer=transformer.eval())


CASES = [
    Case(
        "chronoedit",
        make_pipeline,
        wan.CALL_I2V,
        {"image": picture(1, 32, 48)},
        frames_as_channels,
        calls_per_step=2,
    )
]
