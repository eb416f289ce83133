"""Fresh pictures for a report: the base against the adapted base, same prompts and seeds, with the gates traced."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fera.config import TrainConfig
from fera.data.sounds.spectrogram import spectrogram
from fera.errors import FeraError
from fera.generation import contact_sheet, generate_clips, generate_sounds
from fera.report.folder import Run
from fera.support.progress import Listener
from fera.traces.curves import RoutingCurves, routing_curves

# A row of a laptop's screen holds about as many.
MOST_PROMPTS = 8


@dataclass(frozen=True)
class Sampling:
    """How to draw; what is left out is as the run's [validation] has it.

    Args:
        prompts: what to draw; the run's own prompts where there are none.
        base: where the base is, if not where the run says.
        seed: the seed of the first picture, counting up from there.
        steps: denoising steps.
        guidance_scale: strength of guidance.
        device: where to draw; the fastest there is when left out.
    """

    prompts: Sequence[str] = ()
    base: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    device: str | None = None


@dataclass(frozen=True)
class Drawn:
    """Pictures of the base and of the adapted base.

    Args:
        prompts: the prompts of the pictures.
        base: pictures of the base, one a prompt.
        adapted: pictures with the adapter, likewise.
        curves: gates and band shares along the denoising steps.
        made: how they were drawn, in words.
    """

    prompts: list[str]
    base: list[Image.Image]
    adapted: list[Image.Image]
    curves: list[RoutingCurves] = field(default_factory=list)
    made: str = ""


def draw_pictures(run: Run, sampling: Sampling, listener: Listener) -> Drawn:
    """Draw the base and the adapted base.

    Args:
        run: with an adapter, routed or plain, or a fine-tuned denoiser.
        sampling: what and how.
        listener: hears how far it is.

    Raises:
        FeraError: there is nothing to draw with, or the base or the adapter cannot be loaded.
    """
    # diffusers takes seconds to import, and a page without fresh pictures does without it.
    from fera.models.families import trained_denoiser
    from fera.pipelines.base import load_base, to_device
    from fera.training.trained.kinds import adapter_of

    config, folder, prompts = _check(run, sampling)
    settings = _settings(config, sampling)
    base = sampling.base or config.base
    pipe = load_base(base, revision=None if sampling.base else config.revision)
    to_device(pipe, sampling.device)
    settings |= _given(pipe, run, config, len(prompts))
    before = _draw(pipe, prompts, settings, "base", listener)
    adapter = adapter_of(config.adapter)
    adapter.load(pipe, folder)
    to_device(pipe, sampling.device)
    with adapter.routings(trained_denoiser(pipe, config.adapter.component)[1]) as routings:
        after = _draw(pipe, prompts, settings, "adapted", listener)
    made = (
        f"{settings['num_inference_steps']} denoising steps, guidance {settings['guidance_scale']:g}, seeds from "
        f"{settings['seed']}; the base is {base}"
    )
    return Drawn(prompts, before, after, routing_curves(routings), made)


def run_prompts(run: Run) -> list[str]:
    """What to draw for a run: its validation prompts, those of its demo, or captions it has not been trained on."""
    told = run.summary.get("prompts")
    candidates = (
        run.config.validation.prompts if run.config else [],
        [prompt for prompt in told if isinstance(prompt, str)] if isinstance(told, list) else [],
        [example.caption for example in run.pictures.held_out if example.caption],
        [example.caption for example in run.pictures.training if example.caption],
    )
    prompts = next((list(some) for some in candidates if some), [])
    return list(dict.fromkeys(prompts))[:MOST_PROMPTS]


def _check(run: Run, sampling: Sampling) -> tuple[TrainConfig, Path, list[str]]:
    """What drawing needs: the configuration, the adapter's folder, prompts.

    Raises:
        FeraError: something is missing.
    """
    if run.config is None:
        raise FeraError("without a configuration there is no saying what to draw with")
    if run.adapter_path is None:
        raise FeraError("there is no adapter to draw with")
    prompts = list(sampling.prompts) or run_prompts(run)
    if not prompts:
        raise FeraError("the run has no prompts and no captions; give `prompts`")
    return run.config, run.adapter_path, prompts


def _settings(config: TrainConfig, sampling: Sampling) -> dict[str, Any]:
    """Arguments of `generate_clips` or `generate_sounds`: as asked for, else as the run's previews."""
    validation, resolution = config.validation, config.data.resolution
    return {
        "seed": validation.seed if sampling.seed is None else sampling.seed,
        "num_inference_steps": validation.num_inference_steps if sampling.steps is None else sampling.steps,
        "guidance_scale": validation.guidance_scale if sampling.guidance_scale is None else sampling.guidance_scale,
        "negative_prompt": validation.negative_prompt,
        "height": resolution,
        "width": resolution,
        "num_frames": config.drawn_frames,
        "seconds": config.drawn_seconds,
    }


def _given(pipe: Any, run: Run, config: TrainConfig, count: int) -> dict[str, Any]:
    """Source pictures and masks of the prompts: the run's, in turn; frames of its clips, for a base that is given such.

    Raises:
        FeraError: one cannot be read.
    """
    from fera.generation.sources import SEPARATOR, in_turn, read_masks, read_sources
    from fera.models.families import pairs_of

    pairs = pairs_of(pipe)
    if pairs is None:
        return {}
    entries: Sequence[str] = config.validation.sources
    if not entries and pairs.frames is not None:
        given = 2 if config.data.last_frame or pairs.least == 2 else 1
        clips = run.pictures.held_out or run.pictures.training
        entries = [SEPARATOR.join([str(example.image)] * given) for example in clips]
    return {
        "sources": read_sources(in_turn(entries, count), count),
        "masks": read_masks(in_turn(config.validation.masks, count), count),
    }


def _draw(
    pipe: Any, prompts: Sequence[str], settings: dict[str, Any], label: str, listener: Listener
) -> list[Image.Image]:
    from fera.models.families import sound_of

    if sound_of(pipe) is not None:
        taken = ("seed", "num_inference_steps", "guidance_scale", "negative_prompt", "seconds")
        sounds = generate_sounds(
            pipe,
            prompts,
            **{name: settings[name] for name in taken},
            progress=lambda done, total: listener.advance(f"drawing {label}", done, total),
        )
        return [spectrogram(sound) for sound in sounds]
    settings = {name: value for name, value in settings.items() if name != "seconds"}
    clips = generate_clips(
        pipe,
        prompts,
        **settings,
        batch_size=8 if settings["num_frames"] == 1 else 1,
        progress=lambda done, total: listener.advance(f"drawing {label}", done, total),
    )
    return [contact_sheet(frames, most=4) for frames in clips]
