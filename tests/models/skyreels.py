"""SkyReels V2: frames behind the channels, as Wan."""

import torch
from diffusers import (
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)

from models import wan
from models.case import Case
from models.inputs import awake, embeddings, picture


def make_transformer(**overrides: object) -> SkyReelsV2Transformer3DModel:
    """A transformer for 16-channel latents, text width 64."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "text_dim": 64,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 1,
        "rope_max_seq_len": 32,
    }
    torch.manual_seed(0)
    return SkyReelsV2Transformer3DModel(**settings | overrides).eval()


def make_pipeline() -> SkyReelsV2Pipeline:
    """Text to video."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    return SkyReelsV2Pipeline(**wan.components() | {"scheduler": scheduler}, transformer=make_transformer())


def make_image_to_video() -> SkyReelsV2ImageToVideoPipeline:
    """Channels of a mask and of the picture beside the latent's; CLIP sees it too."""
    transformer = make_transformer(in_channels=36, out_channels=16, image_dim=4, added_kv_proj_dim=24)
    parts = wan.components() | wan.make_vision() | {"transformer": awake(transformer)}
    return SkyReelsV2ImageToVideoPipeline(**parts)


CASES = [
    Case("skyreels", make_pipeline, wan.CALL, {"prompt": "a green tree"}, wan.fold, calls_per_step=2),
    Case(
        "skyreels-i2v",
        make_image_to_video,
        wan.CALL_I2V
        | {"prompt_embeds": embeddings(0, 1, 512, 64), "negative_prompt_embeds": embeddings(1, 1, 512, 64)},
        {"image": picture(1, 32, 48)},
        wan.fold,
        calls_per_step=2,
    ),
]
