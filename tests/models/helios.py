"""Helios: frames behind the channels; frames that were drawn before are arguments of their own."""

import torch
from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

from models import wan
from models.case import Case, frames_as_channels
from models.inputs import picture

CALL = wan.CALL_I2V | {"num_frames": 9, "num_latent_frames_per_chunk": 3}


def make_pipeline() -> HeliosPipeline:
    """Text or a picture to video, one chunk."""
    torch.manual_seed(0)
    settings = {name: value for name, value in wan.SETTINGS.items() if name != "rope_max_seq_len"}
    transformer = HeliosTransformer3DModel(**settings, rope_dim=(4, 4, 4))
    scheduler = HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True)
    return HeliosPipeline(**wan.components() | {"scheduler": scheduler}, transformer=transformer.eval())


CASES = [
    Case("helios", make_pipeline, CALL, {"image": picture(1, 32, 48)}, frames_as_channels, calls_per_step=2),
]
