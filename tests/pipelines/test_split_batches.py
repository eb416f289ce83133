"""Guidance that splits the batch inside of the denoiser: each row has its own latent's gate."""

import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, draw, make_pipeline
from diffusers import FasterCacheConfig, StableDiffusion3PAGPipeline, StableDiffusionPAGPipeline
from models import cogvideox
from peft import inject_adapter_in_model
from rows_cases import by_hand, gate_by_hand
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.tuner.fast.linear import RoutedLinear


def perturbed(kind):
    """A tiny pipeline with perturbed-attention guidance in all layers that it knows."""
    pipe = add_adapter(make_pipeline(kind))
    pipeline_class, layers = {
        "sd": (StableDiffusionPAGPipeline, ["down", "mid", "up"]),
        "sd3": (StableDiffusion3PAGPipeline, [r"transformer_blocks\.\d+"]),
    }[kind]
    parts = {name: part for name, part in pipe.components.items() if kind == "sd" or part is not None}
    pipe = pipeline_class(**parts, pag_applied_layers=layers)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["perturbed", "perturbed and guided"])
@pytest.mark.parametrize("kind", ["sd", "sd3"])
@pytest.mark.parametrize("ways", ["on the CPU", "on a GPU"])
def test_perturbed_attention_gives_each_picture_its_own_gate(kind, guidance, ways, request):
    if ways == "on a GPU":
        request.getfixturevalue("as_on_a_gpu")
    pipe = perturbed(kind)
    with fera.trace(pipe) as steps:
        together = draw(pipe, guidance=guidance)
    assert (steps[0].gates[0] - steps[0].gates[1]).abs().max() > 0.01
    apart = [draw(pipe, [prompt], guidance=guidance, seed=seed) for seed, prompt in enumerate(PROMPTS)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-3, atol=1e-4)


def test_perturbed_attention_by_hand():
    pipe = perturbed("sd")
    seen = []

    def note(module, args, output):
        seen.append((module, args[0], output))

    def after(module, args, kwargs, output):
        latents.append(args[0] if args else kwargs["sample"])

    latents = []
    for module in pipe.unet.modules():
        if isinstance(module, RoutedLinear):
            module.register_forward_hook(note)
    pipe.unet.register_forward_hook(after, with_kwargs=True)
    draw(pipe, guidance=3.0, steps=1)
    (latent,) = latents
    gates = gate_by_hand(pipe.unet, latent[:2])
    assert {len(x) for _, x, _ in seen} == {2, 4, 6}  # perturbed, the others, all
    for layer, x, output in seen:
        own = gates.repeat(len(x) // 2, 1).repeat_interleave(x.shape[1], dim=0)
        expected = by_hand(layer, x.flatten(0, 1), own).view_as(output)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def cached_videos(count, seeds):
    """Videos of the tiny CogVideoX, of two frames in latents, with the unconditional half left out of most steps."""
    pipe = cogvideox.CASES[0].pipeline()
    pipe.set_progress_bar_config(disable=True)
    inject_adapter_in_model(
        FeraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj"]), pipe.transformer
    )
    fill(pipe.transformer)
    pipe.transformer.enable_cache(
        FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            unconditional_batch_skip_range=5,
            unconditional_batch_timestep_skip_range=(-1, 1001),
            attention_weight_callback=lambda module: 0.3,
            tensor_format="BFCHW",
            current_timestep_callback=lambda: pipe.current_timestep,
        )
    )
    rows = set()
    pipe.transformer.transformer_blocks[0].attn1.to_q.register_forward_hook(
        lambda module, args, output: rows.add(len(args[0]))
    )
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    call = cogvideox.CASES[0].call | {"num_frames": 5, "num_inference_steps": 4}
    call["prompt"] = [call["prompt"]] * count
    return pipe(**call, generator=generators, return_dict=False)[0], rows


def test_fastercache_gives_each_video_its_own_gate():
    """The embedding of patches folds two frames into the batch: half a batch has as many rows as a batch has videos."""
    together, rows = cached_videos(2, [0, 1])
    assert rows == {4, 2}
    apart = [cached_videos(1, [seed])[0] for seed in (0, 1)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-3, atol=1e-4)
