"""Krea 2: packed tokens, their places behind those of the text in one argument; guidance in two calls."""

import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from torch import Tensor

from models import qwen_image
from models.case import Case
from models.inputs import awake, embeddings, mask


def prompt(seed: int, name: str = "prompt") -> dict[str, Tensor]:
    """The embeddings of two layers of a text encoder, and their mask."""
    return {f"{name}_embeds": embeddings(seed, 1, 5, 2, 32), f"{name}_embeds_mask": mask(1, 5)}


CALL = qwen_image.CALL | prompt(0) | prompt(1, "negative_prompt")


def make_transformer(**overrides: object) -> Krea2Transformer2DModel:
    """For 8-channel latents, two layers of text 32 wide."""
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "in_channels": 32,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "timestep_embed_dim": 16,
        "text_hidden_dim": 32,
        "num_text_layers": 2,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "text_intermediate_size": 32,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "axes_dims_rope": (4, 4, 8),
    }
    model = Krea2Transformer2DModel(**settings | overrides)
    return awake(model)


def make_pipeline() -> Krea2Pipeline:
    """For prompt embeddings."""
    return Krea2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=qwen_image.make_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=make_transformer(),
    )


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function, less its axis of one frame."""
    return pipe._unpack_latents(latents, CALL["height"], CALL["width"]).squeeze(2)


CASES = [Case("krea2", make_pipeline, CALL, prompt(2), unpack, calls_per_step=2)]
