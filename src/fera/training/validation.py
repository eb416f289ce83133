"""Held-out loss and pictures along the way: always the same noise, timesteps, prompts and seeds."""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fera.config import TrainConfig, ValidationConfig
from fera.data.buckets import Shape
from fera.data.cache.encoded import EncodedSet
from fera.data.sounds.sound import Waveform
from fera.data.sounds.spectrogram import spectrogram
from fera.models.noise import fixed_noise, spread_timesteps
from fera.pipelines.block_offload import move, place
from fera.support.files import replace_file, replace_text
from fera.training.previewing import Previews
from fera.training.start.prepare import Setup
from fera.training.step.losses import denoising_losses
from fera.tuner.model import gate_of
from fera.version import __version__


@torch.no_grad()
def held_out_loss(
    setup: Setup, settings: ValidationConfig, batch_size: int, autocast: Callable[[], AbstractContextManager[Any]]
) -> float | None:
    """Denoising loss on pictures that are not trained on.

    Sample i is picture i (modulo their number) at its own fixed noise and timestep; the timesteps cover the noise
    levels evenly, whatever training draws. Unweighted, so runs of different settings compare. Pictures of one size go
    through the denoiser together.

    Args:
        setup: the setup of the run.
        settings: number of samples and seed.
        batch_size: samples a forward; does not change the result but for rounding.
        autocast: context for forwards.

    Returns:
        Mean squared error, or None where nothing is held out.
    """
    if setup.held_out is None:
        return None
    device = next(setup.denoiser.parameters()).device
    count = settings.loss_samples
    # Shuffled, so that a picture does not meet the same noise levels whenever it comes round.
    generator = torch.Generator().manual_seed(settings.seed)
    timesteps = spread_timesteps(setup.process, count)[torch.randperm(count, generator=generator)]
    total = 0.0
    with evaluating(setup.denoiser), _evaluating_text(setup), autocast():
        for samples in _batches(setup.held_out, count, batch_size):
            batch = setup.held_out.batch([sample % len(setup.held_out) for sample in samples])
            noise = fixed_noise(batch.latents, samples, settings.seed)
            cached = {name: value.to(device) for name, value in batch.conditions.items()}
            conditions = setup.conditions(batch.captions, cached)
            losses = denoising_losses(
                setup.process,
                batch.latents.to(device),
                noise.to(device),
                timesteps[samples].to(device),
                setup.predictor(setup.denoiser, conditions),
                mask=batch.mask.to(device) if batch.mask is not None else None,
            )
            total += float(losses.denoising.sum())
    return total / count


def draw_samples(
    setup: Setup, config: TrainConfig, folder: Path, step: int, device: torch.device
) -> tuple[Path, list[Image.Image]]:
    """Draw the validation prompts as `fera generate` does with the adapter as it is at this step: the same pictures.

    Args:
        setup: the setup of the run; the pipeline still has its encoders.
        config: the configuration of the run: prompts, seed, steps, guidance, precision.
        folder: gets `step-000100.png`, and how it was drawn as `step-000100.json`; of clips, contact sheets are in the
            grid, and `step-000100-000.mp4` and so on are beside it; of sounds, spectrograms, and `.wav`.
        step: optimizer steps taken.
        device: where to draw.

    Returns:
        Path of the grid, and the pictures in it, one a prompt.
    """
    from fera.generation import contact_sheet, save_clip, save_sound
    from fera.generation.grids import prompt_grid

    settings = config.validation
    previews = Previews(config, setup.family, setup.resolution, setup.bucket_step, setup.given)
    folder.mkdir(parents=True, exist_ok=True)
    with evaluating(setup.denoiser), _evaluating_text(setup), _as_loaded(setup):
        move(setup.pipe, device)
        drawn = [one for call in previews.calls() for one in call(setup.pipe)]
    if device.type != "cpu":
        trained = setup.text.needed if setup.text is not None else ()
        eyes = setup.family.pairs.eyes if setup.family.pairs is not None else ()
        for name in {"vae", *setup.family.text_components, *eyes} - {*trained}:
            part = getattr(setup.pipe, name)
            if isinstance(part, nn.Module):
                place(part, "cpu")
        gc.collect()
        torch.cuda.empty_cache()
    path = folder / f"step-{step:06d}.png"
    video = setup.family.video
    images = []
    for number, one in enumerate(drawn):
        about, beside = {"prompt": settings.prompts[number]}, path.with_name(f"{path.stem}-{number:03d}")
        if isinstance(one, Waveform):
            save_sound(one, beside.with_suffix(".wav"), about)
            images.append(spectrogram(one))
            continue
        if len(one) > 1 and video is not None:
            save_clip(one, beside.with_suffix(".mp4"), config.data.frame_rate or video.frame_rate, about)
        images.append(contact_sheet(one, most=4))
    sources = previews.sources()
    shown = {"source": [pictures[0] for pictures in sources]} if sources else {}
    grid = prompt_grid({**shown, f"step {step}": images}, settings.prompts)
    replace_file(path, lambda file: grid.save(file, format="PNG"))
    record = json.dumps(_how_drawn(setup, config, previews.entries, step), indent=2, ensure_ascii=False)
    replace_text(path.with_suffix(".json"), record + "\n")
    return path, images


def _how_drawn(setup: Setup, config: TrainConfig, sources: Sequence[str], step: int) -> dict[str, Any]:
    """What `fera generate` has to be told to draw the same, under the names that its own record has."""
    settings = config.validation
    return {
        "fera": __version__,
        "base": config.base,
        "step": step,
        "negative_prompt": settings.negative_prompt,
        "steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        **(
            {"seconds": config.drawn_seconds}
            if setup.family.sound is not None
            else {"height": setup.resolution, "width": setup.resolution}
        ),
        **({"num_frames": config.drawn_frames} if setup.family.video is not None else {}),
        "precision": {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(setup.dtype, "fp32"),
        "images": [
            {"prompt": prompt, "seed": settings.seed + i}
            | {name: given[i] for name, given in (("source", sources), ("mask", settings.masks)) if given}
            for i, prompt in enumerate(settings.prompts)
        ],
    }


@contextmanager
def _as_loaded(setup: Setup) -> Iterator[None]:
    """Round what trains in float32 to the precision that it has once loaded: the base's, but for the router's."""
    gate = gate_of(setup.denoiser)
    router = {id(held) for held in gate.parameters()} if gate is not None else set()
    rounded = [held for held in setup.denoiser.parameters() if held.requires_grad and id(held) not in router]
    if setup.text is not None:
        rounded += setup.text.parameters
    trained = [(parameter, parameter.data) for parameter in rounded]
    try:
        for parameter, exact in trained:
            parameter.data = exact.to(setup.dtype)
        yield
    finally:
        for parameter, exact in trained:
            parameter.data = exact


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _evaluating_text(setup: Setup) -> AbstractContextManager[None]:
    return nullcontext() if setup.text is None else setup.text.evaluating()


def _batches(held_out: EncodedSet, count: int, batch_size: int) -> Iterator[list[int]]:
    """Samples 0 to count - 1 in batches of one size each."""
    by_size: dict[tuple[Shape, ...], list[int]] = {}
    for sample in range(count):
        by_size.setdefault(held_out.groups[sample % len(held_out)], []).append(sample)
    for samples in by_size.values():
        for start in range(0, len(samples), batch_size):
            yield samples[start : start + batch_size]
