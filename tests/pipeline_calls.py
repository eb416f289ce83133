"""Calls of pipelines, as tests make them."""

import torch
from adapter_cases import PROMPTS
from models.recorded import recorded_latents

import fera


def call(pipe, **arguments):
    """Routings of a pipeline call, the latents of its steps, and its result."""
    settings = {"prompt": PROMPTS[0], "num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    with fera.trace(pipe) as steps, recorded_latents(pipe) as latents:
        result = pipe(**settings | arguments, generator=generator).images
    return steps, latents, result
