"""FLUX.2."""

import torch
from diffusers import DiffusionPipeline, Flux2KleinPipeline, Flux2Pipeline
from models import flux2
from tiny_texts import make_mistral3, make_qwen3, make_tokenizer

from trained_cases.case import Case


def with_statistics(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Its autoencoder's batch norm with statistics unlike those of a fresh one."""
    generator = torch.Generator().manual_seed(0)
    pipe.vae.bn.running_mean.normal_(generator=generator)
    pipe.vae.bn.running_var.uniform_(0.5, 2, generator=generator)
    return pipe


def make_dev() -> Flux2Pipeline:
    """Told a guidance. Text of its 10th, 20th and 30th layer, 24 wide."""
    parts = flux2.make_pipeline(joint_attention_dim=24).components
    return with_statistics(Flux2Pipeline(**parts | {"text_encoder": make_mistral3(30), "tokenizer": make_tokenizer()}))


def make_klein() -> Flux2KleinPipeline:
    """Told none. Text of three layers, 24 wide."""
    parts = flux2.make_klein_pipeline(joint_attention_dim=24).components
    return with_statistics(
        Flux2KleinPipeline(**parts | {"text_encoder": make_qwen3(27), "tokenizer": make_tokenizer()})
    )


REFERENCES = ((72, 64), (64, 80))

CASES = [
    Case("flux2", make_dev),
    Case("flux2-klein", make_klein),
    Case("flux2-references", make_dev, sources=REFERENCES, variant=True),
    Case("flux2-klein-references", make_klein, sources=REFERENCES, variant=True),
]
