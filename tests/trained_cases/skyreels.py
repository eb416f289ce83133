"""SkyReels V2."""

from diffusers import SkyReelsV2Pipeline
from models import skyreels

from trained_cases import wan
from trained_cases.case import Case


def make_pipeline() -> SkyReelsV2Pipeline:
    """For 4-channel latents, each with statistics of its own."""
    parts = wan.make_pipeline().components
    names = ("tokenizer", "text_encoder", "vae", "scheduler")
    transformer = skyreels.make_transformer(in_channels=4, out_channels=4)
    return SkyReelsV2Pipeline(**{name: parts[name] for name in names}, transformer=transformer)


CASES = [Case("skyreels", make_pipeline, height=32, width=48, frames=9)]
