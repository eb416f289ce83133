"""SkyReels V2."""

from diffusers import SkyReelsV2ImageToVideoPipeline, SkyReelsV2Pipeline
from models import skyreels
from models import wan as parts_of_wan
from models.inputs import awake

from trained_cases import wan
from trained_cases.case import Case


def make_pipeline() -> SkyReelsV2Pipeline:
    """For 4-channel latents, each with statistics of its own."""
    parts = wan.make_pipeline().components
    names = ("tokenizer", "text_encoder", "vae", "scheduler")
    transformer = skyreels.make_transformer(in_channels=4, out_channels=4)
    return SkyReelsV2Pipeline(**{name: parts[name] for name in names}, transformer=transformer)


def make_image_to_video() -> SkyReelsV2ImageToVideoPipeline:
    """Channels of a mask and of given frames beside the latent's, and CLIP sees them."""
    parts = make_pipeline().components | parts_of_wan.make_vision()
    transformer = skyreels.make_transformer(in_channels=12, out_channels=4, image_dim=4, added_kv_proj_dim=24)
    return SkyReelsV2ImageToVideoPipeline(**parts | {"transformer": awake(transformer)})


CASES = [
    Case("skyreels", make_pipeline, height=32, width=48, frames=9),
    Case("skyreels-i2v", make_image_to_video, height=32, width=48, frames=5, given=1, variant=True),
]
