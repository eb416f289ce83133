"""LTX-Video and LTX-2."""

from typing import Any

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names
from comfyui_twins.frames import of_tokens

# Pixels and frames that an entry of its latent is, and how many frames a second ComfyUI takes a video to have.
SPATIAL, TEMPORAL, RATE = 32, 8, 25
_REST = {
    r"(.+)\.norm_([qk])\.(.+)": r"\1.\2_norm.\3",
    r"(.+)\.(video|audio)_a2v_cross_attn_scale_shift_table": r"\1.scale_shift_table_a2v_ca_\2",
    r"(.*scale_shift_table)": r"\1",
}


def ltx() -> Twin:
    """LTX-Video's transformer, on three frames of a latent."""
    from models.ltx import components

    denoiser: Any = components()["transformer"]
    config = denoiser.config
    settings = {
        **{"image_model": "ltxv", "in_channels": 8, "cross_attention_dim": 32, "attention_head_dim": 8},
        **{"num_attention_heads": 4, "caption_channels": 64, "num_layers": 1, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.LTXV(comfy.supported_models.LTXV(settings), device="cpu")
    copy_by_names(denoiser, model, _REST)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        frames, height, width = latent.shape[2:]
        tokens = denoiser(
            hidden_states=latent.flatten(2).transpose(1, 2),
            encoder_hidden_states=context,
            timestep=1000 * of_tokens(level, latent),
            encoder_attention_mask=torch.ones(context.shape[:2], dtype=torch.long),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(TEMPORAL / RATE, SPATIAL, SPATIAL),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).unflatten(2, (frames, height, width))

    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    assert config.out_channels == 8
    return Twin(denoiser, model, (8, 3, 8, 8), predict, (5, 64), {"attention_mask": None}, targets)


def ltx2() -> Twin:
    """LTX-2's transformer, on three frames and their sound."""
    from models.ltx2 import make_transformer

    denoiser = make_transformer(audio_in_channels=128, audio_out_channels=128)
    settings = {
        **{"image_model": "ltxav", "in_channels": 4, "cross_attention_dim": 16, "attention_head_dim": 8},
        **{"num_attention_heads": 2, "audio_in_channels": 128, "audio_cross_attention_dim": 8, "num_layers": 1},
        **{"audio_attention_head_dim": 4, "audio_num_attention_heads": 2, "caption_channels": 16, "rope_type": "split"},
        **{"use_middle_indices_grid": True, "causal_temporal_positioning": True, "dtype": torch.float32},
        **{"av_ca_timestep_scale_multiplier": 1000.0, "connector_attention_head_dim": 8},
        **{"connector_num_attention_heads": 2, "connector_num_layers": 1},
    }
    comfy = engine()
    model = comfy.model_base.LTXAV(comfy.supported_models.LTXAV(settings), device="cpu")
    # What goes through these before a call is the pipeline's business in diffusers.
    del model.diffusion_model.audio_embeddings_connector, model.diffusion_model.video_embeddings_connector
    copy_by_names(denoiser, model, _REST)
    sound = torch.randn(1, 8, 6, 16, generator=torch.Generator().manual_seed(3))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        frames, height, width = latent.shape[2:]
        texts, of_sound = context.chunk(2, dim=-1)
        tokens = denoiser(
            hidden_states=latent.flatten(2).transpose(1, 2),
            audio_hidden_states=sound.transpose(1, 2).flatten(2).expand(len(latent), -1, -1),
            encoder_hidden_states=texts,
            audio_encoder_hidden_states=of_sound,
            timestep=1000 * of_tokens(level, latent),
            audio_timestep=1000 * level if level.ndim == 1 else 1000 * level.amax(dim=1),
            num_frames=frames,
            height=height,
            width=width,
            fps=RATE,
            audio_num_frames=sound.shape[2],
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).unflatten(2, (frames, height, width))

    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "linear"]
    told = {"attention_mask": None}
    return Twin(denoiser, model, (4, 3, 8, 8), predict, (5, 32), told, targets, sound=sound)
