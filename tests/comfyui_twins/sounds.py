"""Models of sound."""

import torch
from comfyui_engine import Twin, engine
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names

_OF_ACE_STEP = {
    r"(.+)\.norm_([qk])\.(.+)": r"decoder.\1.\2_norm.\3",
    r"(.*scale_shift_table)": r"decoder.\1",
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
