"""Sound: Stable Audio 3, ACE-Step, LongCat-AudioDiT, MiniMax Music 3."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fera.models.registry import FRACTION, Denoiser, add

# Its attention fuses queries, keys and values, those of the text without the queries.
_STABLE_AUDIO3 = ("to_qkv", "to_q", "to_kv", "to_out")
# Of those that count how clean a latent is.
_CLEANNESS = (1.0, 0.0)


def _channels_first(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, C, L)."""
    return latent


def _channels_last(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, L, C); what is told of other sound is an argument of its own."""
    return latent.transpose(1, 2)


add(
    "StableAudio3DiTModel",
    Denoiser(
        "hidden_states",
        _channels_first,
        _STABLE_AUDIO3,
        timestep_range=FRACTION,
        pipelines=("StableAudio3Pipeline",),
    ),
)
add(
    "AceStepTransformer1DModel",
    Denoiser("hidden_states", _channels_last, timestep_range=FRACTION, pipelines=("AceStepPipeline",)),
)
add(
    "LongCatAudioDiTTransformer",
    Denoiser("hidden_states", _channels_last, timestep_range=_CLEANNESS, pipelines=("LongCatAudioDiTPipeline",)),
)
add(
    "MiniMaxMusic3Transformer1DModel",
    Denoiser("hidden_states", _channels_first, timestep_range=_CLEANNESS, pipelines=("MiniMaxMusic3ModularPipeline",)),
)
