"""Text encoders of ComfyUI's classes with the weights and tokenizers of a small pipeline's."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfyui_engine import engine
from torch import nn


def clip_of(pipe: Any, folder: Path) -> Any:
    """ComfyUI's `CLIP` for Stable Diffusion 1 or SDXL.

    Args:
        pipe: the pipeline.
        folder: to keep its tokenizers in, from which ComfyUI reads them.
    """
    comfy = engine()
    import comfy.sd1_clip as sd1
    import comfy.sdxl_clip as sdxl

    encoders = {"clip_l": (pipe.text_encoder, pipe.tokenizer)}
    if hasattr(pipe, "text_encoder_2"):
        encoders["clip_g"] = (pipe.text_encoder_2, pipe.tokenizer_2)
    options = {f"{name}_model_config": encoder.config.to_dict() for name, (encoder, _) in encoders.items()}
    kind = sdxl.SDXLClipModel if "clip_g" in encoders else sd1.SD1ClipModel
    model = kind(dtype=torch.float32, model_options=options)
    paths = {}
    for name, (encoder, tokenizer) in encoders.items():
        held = getattr(model, name)
        ids = {"start": tokenizer.bos_token_id, "end": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
        held.special_tokens = ids
        _fill(held.transformer, encoder)
        tokenizer.save_pretrained(folder / name)
        paths[name] = str(folder / name)
    clip = comfy.sd.CLIP(no_init=True)
    clip.cond_stage_model = model
    clip.tokenizer = _tokenizers(paths, sd1, sdxl)
    clip.patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    clip.layer_idx, clip.tokenizer_options = None, {}
    clip.use_clip_schedule, clip.apply_hooks_to_conds = False, None
    return clip


def _fill(own: nn.Module, encoder: nn.Module) -> None:
    """ComfyUI's table of words is of CLIP's size whatever the config says."""
    weights = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    words = weights.pop("embeddings.token_embedding.weight")
    own.text_model.embeddings.token_embedding.weight = nn.Parameter(words, requires_grad=False)
    projection = weights.pop("text_projection.weight", torch.eye(words.shape[1]))
    own.text_projection.weight.data.copy_(projection)
    weights.pop("embeddings.position_ids", None)
    missing, unexpected = own.text_model.load_state_dict(weights, strict=False)
    assert missing == ["embeddings.token_embedding.weight"] and not unexpected


def _tokenizers(paths: dict[str, str], sd1: Any, sdxl: Any) -> Any:
    settings = {"embedding_size": 32, "max_length": 16}
    if "clip_g" not in paths:
        return sd1.SD1Tokenizer(tokenizer=partial(sd1.SDTokenizer, tokenizer_path=paths["clip_l"], **settings))
    both = sdxl.SDXLTokenizer()
    both.clip_l = sd1.SDTokenizer(tokenizer_path=paths["clip_l"], **settings)
    both.clip_g = sd1.SDTokenizer(tokenizer_path=paths["clip_g"], embedding_key="clip_g", **settings)
    return both
