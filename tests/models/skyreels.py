"""SkyReels V2: frames behind the channels, as Wan."""

import torch
from diffusers import SkyReelsV2Pipeline, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler

from models import wan
from models.case import Case


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


CASES = [Case("skyreels", make_pipeline, wan.CALL, {"prompt": "a green tree"}, wan.fold, calls_per_step=2)]
