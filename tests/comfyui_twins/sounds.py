"""Models of sound."""

from typing import Any

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names

_OF_ACE_STEP = {
    r"(.+)\.norm_([qk])\.(.+)": r"decoder.\1.\2_norm.\3",
    r"(.*scale_shift_table)": r"decoder.\1",
}
_OF_STABLE_AUDIO = {
    r"time_proj\.(.+)": r"timestep_features.\1",
    r"transformer_blocks\.(\d+)\.norm1\.weight": r"transformer.layers.\1.pre_norm.gamma",
    r"transformer_blocks\.(\d+)\.norm2\.weight": r"transformer.layers.\1.cross_attend_norm.gamma",
    r"transformer_blocks\.(\d+)\.norm3\.weight": r"transformer.layers.\1.ff_norm.gamma",
}
_OF_STABLE_AUDIO3 = {
    r"transformer_blocks\.(\d+)\.(to_scale_shift_gate|.+\.gamma)": r"transformer.layers.\1.\2",
    r"(memory_tokens|rotary_pos_emb\.inv_freq)": r"transformer.\1",
}


def ace_step() -> Twin:
    """ACE-Step 1.5's transformer; ComfyUI's model encodes words, lyrics and a given sound itself."""
    from models.sound import make_ace_step

    denoiser = make_ace_step().transformer
    settings = {
        **{"audio_model": "ace1.5", "in_channels": 24, "hidden_size": 32, "text_hidden_dim": 16},
        **{"timbre_hidden_dim": 8, "audio_acoustic_hidden_dim": 8, "num_dit_layers": 2, "num_lyric_layers": 1},
        **{"num_timbre_layers": 1, "num_tokenizer_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8},
        **{"intermediate_size": 64, "sliding_window": 16, "fsq_dim": 32, "encoder_hidden_size": 32},
        **{"encoder_intermediate_size": 64, "encoder_num_heads": 4, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.ACEStep15(comfy.supported_models.ACEStep15(settings), device="cpu")
    own = model.diffusion_model
    generator = torch.Generator().manual_seed(3)
    for weight in own.parameters():  # of the encoders, which are no part of diffusers' denoiser
        weight.requires_grad_(False).normal_(std=0.1, generator=generator)
    copy_by_names(denoiser, model, _OF_ACE_STEP, ("encoder.", "tokenizer.", "detokenizer.", "null_condition_emb"))
    lyrics, given = torch.randn(1, 4, 16, generator=generator), torch.randn(1, 8, 32, generator=generator)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        sound, batch = latent.movedim(-1, -2), len(latent)
        texts, _, behind = own.prepare_condition(
            *(context, None, lyrics.expand(batch, -1, -1), None, given.movedim(-1, -2).expand(batch, -1, -1)),
            *(torch.zeros(batch, dtype=torch.long), sound, torch.ones_like(sound), False),
        )
        found = denoiser(
            hidden_states=sound,
            timestep=level,
            timestep_r=level,
            encoder_hidden_states=texts,
            context_latents=behind,
            return_dict=False,
        )[0]
        return found.movedim(-1, -2)

    told = {"lyric_embed": lyrics, "refer_audio": given, "is_covers": False}
    targets = ["to_q", "to_k", "to_v", "to_out.0", "gate_proj", "down_proj", "time_proj", "condition_embedder"]
    return Twin(denoiser, model, (8, 32), predict, (5, 16), told, targets)


def stable_audio() -> Twin:
    """Stable Audio's transformer, whose keys and values of texts have half as many heads as its queries."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed
    from models.stable_audio import make_transformer

    sizes = {"attention_head_dim": 64, "num_key_value_attention_heads": 1, "time_proj_dim": 256}
    denoiser: Any = make_transformer(**sizes, global_states_input_dim=32)
    for block in denoiser.transformer_blocks:  # zeros in the real model, which ComfyUI leaves out
        block.norm1.bias = block.norm2.bias = block.norm3.bias = None
    settings = {
        **{"audio_model": "dit1.0", "io_channels": 8, "embed_dim": 128, "depth": 1, "num_heads": 2},
        **{"cond_token_dim": 64, "global_cond_dim": 32, "dtype": torch.float32},
    }
    comfy = engine()
    import comfy.ldm.audio.embedders as embedders

    seconds = _zeros(embedders.NumberConditioner(768, min_val=0, max_val=512))
    model = comfy.model_base.StableAudio1(comfy.supported_models.StableAudio(settings), seconds, seconds, device="cpu")
    frequencies = model.diffusion_model.transformer.rotary_pos_emb.inv_freq  # which are in its checkpoint
    frequencies.copy_(1 / 10000 ** (torch.arange(0, 32, 2) / 32))
    copy_by_names(denoiser, model, _OF_STABLE_AUDIO, ("transformer.rotary_pos_emb.",))
    length = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        rotary = get_1d_rotary_pos_embed(32, latent.shape[2] + 1, use_real=True, repeat_interleave_real=False)
        told = {"global_hidden_states": length[:, None].expand(len(latent), -1, -1), "rotary_embedding": rotary}
        return denoiser(latent, level, encoder_hidden_states=context, **told).sample

    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    targets += ["cross_attention_proj.0", "timestep_proj.2"]
    return Twin(denoiser, model, (8, 32), predict, (5, 64), {"global_embed": length}, targets)


def stable_audio3() -> Twin:
    """Stable Audio 3's transformer, whose attention is the difference of two, and which can be given a sound."""
    from models.sound import make_stable_audio3_transformer

    denoiser: Any = make_stable_audio3_transformer(
        embed_dim=128, num_heads=2, ff_mult=4, timestep_features_dim=256, use_differential_attention=True
    )
    del denoiser.prompt_padding_embedding  # ComfyUI puts it behind short texts before a call
    for module in denoiser.modules():  # what ComfyUI's norms leave to PyTorch
        if hasattr(module, "gamma"):
            module.eps = torch.finfo(torch.float32).eps
    settings = {
        **{"audio_model": "dit1.0", "io_channels": 8, "embed_dim": 128, "depth": 2, "num_heads": 2},
        **{"cond_token_dim": 16, "project_cond_tokens": True, "global_cond_dim": 16, "num_memory_tokens": 3},
        **{"attn_kwargs": {"qk_norm": "rms", "differential": True}, "norm_type": "rms_norm"},
        **{"timestep_features_type": "expo", "local_add_cond_dim": 5, "global_cond_shared_embed": True},
        **{"global_cond_type": "adaLN", "dtype": torch.float32},
    }
    comfy = engine()
    import comfy.ldm.audio.embedders as embedders

    kind = {"fourier_features_type": "expo"}
    seconds = _zeros(embedders.NumberConditioner(768, min_val=0, max_val=384, **kind))
    model = comfy.model_base.StableAudio3(comfy.supported_models.StableAudio3(settings), seconds, device="cpu")
    copy_by_names(denoiser, model, _OF_STABLE_AUDIO3)
    generator = torch.Generator().manual_seed(3)
    length, given = torch.randn(1, 16, generator=generator), torch.randn(1, 5, 32, generator=generator)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        batch = len(latent)
        told = {"global_hidden_states": length.expand(batch, -1), "local_add_cond": given.expand(batch, -1, -1)}
        return denoiser(latent, level, encoder_hidden_states=context, **told).sample

    told = {"global_embed": length, "local_add_cond": given}
    targets = ["to_qkv", "to_q", "to_kv", "to_out", "ff.proj_in", "ff.proj_out", "to_local_embed.2", "to_cond_embed.0"]
    targets += ["to_timestep_embed.2", "proj_out"]
    return Twin(denoiser, model, (8, 32), predict, (5, 16), told, targets)


def _zeros(embedder: nn.Module) -> dict[str, Tensor]:
    """Weights of what tells lengths, which a call gets already embedded; ComfyUI leaves them as memory has them."""
    return {name: torch.zeros_like(weight) for name, weight in embedder.state_dict().items()}
