"""What the tests of pipelines that train share: a plugin with the case and its pipeline, calls of it, a recorder."""

import inspect
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
)
from models.inputs import picture
from PIL import Image
from torch.nn import functional
from trained_cases import CASES

from fera.data.cache.encoder import Encoder
from fera.data.checking import check_images
from fera.data.clips.fitting import fit_clips
from fera.data.example import Example, Source
from fera.data.pair_checks import with_sources
from fera.data.tensors import to_clip
from fera.generation.sources import brought_to
from fera.models import CallReader, find, layouts_video
from fera.models.components import denoisers
from fera.models.families import family_of, video_of
from fera.models.layouts import count_channels
from fera.models.noise import noise_process

CAPTION = "a red rocket"
CPU = torch.device("cpu")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def pipe(case, monkeypatch):
    return pipe_of(case, monkeypatch)


def pipe_of(case, monkeypatch):
    """The pipeline of a case, as the case's patches make it."""
    case.patch(monkeypatch)
    pipe = case.pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def direction(scheduler):
    """From the picture to noise is 1, as training has it; from noise to the picture -1."""
    return -1 if scheduler.config.get("invert_sigmas") else 1


def noise_levels(scheduler):
    """Of a scheduler of flow matching, in the unit of its timesteps; some count how clean a latent is."""
    sigmas = 1 - scheduler.sigmas if scheduler.config.get("invert_sigmas") else scheduler.sigmas
    return sigmas * noise_process(scheduler).num_train_timesteps


class Recorder:
    """What a pipeline's scheduler gets and its denoiser is told, step by step; latents as (B, C, H, W).

    `replace` changes what a step returns: a function of the latents that it was given, as the scheduler has them.
    """

    def __init__(self, pipe, replace=None):
        self.pipe, self.replace = pipe, replace
        pairs = family_of(pipe).pairs
        self.is_given = pairs is not None and pairs.frames is not None
        self.sources_follow = pairs is not None and not self.is_given
        self.denoiser = next(iter(denoisers(pipe).values()))
        self.calls, self.latents, self.levels, self.outputs, self.decoded, self.sigmas = [], [], [], [], [], []

    def __enter__(self):
        self.reader = CallReader(self.denoiser)
        self.hook = self.denoiser.register_forward_pre_hook(self._called, with_kwargs=True)
        self.step, self.decode = self.pipe.scheduler.step, self.pipe.vae.decode
        self.pipe.scheduler.step, self.pipe.vae.decode = self._step, self._decode
        return self

    def __exit__(self, *_):
        del self.pipe.scheduler.step, self.pipe.vae.decode
        self.hook.remove()

    def _called(self, module, args, kwargs):
        self.calls.append((args, kwargs))
        self.latents.append(own(self.reader.latent(module, args, kwargs)))

    def _step(self, model_output, timestep, sample, *args, **kwargs):
        self.outputs.append(direction(self.pipe.scheduler) * self.unpacked(model_output))
        result = self.step(model_output, timestep, sample, *args, **kwargs)
        scheduler = self.pipe.scheduler
        level = timestep
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            # Timesteps need not be those of the noise levels; the scheduler works by the latter.
            level = noise_levels(scheduler)[len(self.outputs) - 1]
        self.levels.append(torch.as_tensor(level).reshape(1))
        self.sigmas.append(scheduler.sigmas[len(self.outputs) - 1] if hasattr(scheduler, "sigmas") else None)
        if self.replace is None:
            return result
        changed = self.replace(sample)
        return (changed,) if isinstance(result, tuple) else SimpleNamespace(prev_sample=changed)

    def _decode(self, latents, *args, **kwargs):
        self.decoded.append(latents.clone())
        return self.decode(latents, *args, **kwargs)

    def arguments(self):
        """Those of the last forward, by name."""
        args, kwargs = self.calls[-1]
        return {**dict(zip(self.reader._names, args, strict=False)), **kwargs}

    def unpacked(self, tensor):
        """A tensor that is laid out as the scheduler's latents, as (B, C, H, W)."""
        if tensor.shape == self.latents[-1].shape:
            return tensor.clone()
        arguments, entry = self.arguments(), find(self.denoiser)
        if self.is_given and tensor.ndim == 5 and entry.view is not layouts_video.frames_first:
            count = self.latents[-1].shape[1] // count_channels(self.denoiser)
            drawn = tensor[:, :, -count:]
            return (drawn if entry.view is layouts_video.channels_first else drawn.transpose(1, 2)).flatten(1, 2)
        if tensor.ndim == 3:  # tokens of a text may come before those of the picture, those of sources behind them
            others = arguments[entry.latent].shape[1] - tensor.shape[1]
            tensor = functional.pad(tensor, (0, 0, 0, others) if self.sources_follow else (0, 0, others, 0))
        return entry.view(self.denoiser, tensor, arguments).clone()


def own(latent):
    """The channels of a latent (B, C, H, W) that are drawn: those of a given frame are zeros to the gate."""
    return latent[:, latent.flatten(2).any(dim=2).any(dim=0)].clone()


def at(pipe, level):
    """The timestep of a noise level, shape (1,)."""
    return noise_process(pipe.scheduler).timesteps(torch.tensor([1 - level]))


def draw(pipe, case, **changes):
    settings = {"num_inference_steps": 2, "output_type": "latent"}
    if sound := family_of(pipe).sound:
        settings |= {sound.argument: case.seconds, "guidance_scale": 1.0}
    else:
        settings |= {"height": case.height, "width": case.width}
    frames = {video_of(pipe).argument: case.frames} if case.frames else {}
    call = {**settings, **family_of(pipe).call, **case.call, **frames, **changes}
    if case.sources or case.given:
        size, pairs = (case.width, case.height), family_of(pipe).pairs
        given = [brought_to(size, one, pairs) for one in sources_of(case)]
        call |= pairs.arguments(given, brought_to(size, mask_of(case), pairs) if case.is_filled else None, size)
        call = {name: value for name, value in call.items() if name in inspect.signature(pipe.__call__).parameters}
    if "prompt" in inspect.signature(pipe.__call__).parameters:
        named = family_of(pipe).pairs.prompt if case.sources else None
        call.setdefault("prompt", named(CAPTION, len(case.sources)) if named else CAPTION)
    drawn = pipe(generator=torch.Generator().manual_seed(0), return_dict=False, **call)
    return drawn[0] if isinstance(drawn, tuple | dict) else drawn


def sources_of(case, seed=7):
    """The source pictures that a prompt is given, or frames."""
    if case.given:
        return [frames_of(case, seed)[place] for place in (0, -1)[: case.given]]
    return [picture(seed + number, height, width) for number, (width, height) in enumerate(case.sources)]


def frames_of(case, seed=7):
    """A clip to train on."""
    return [picture(seed + number, case.height, case.width) for number in range(case.frames)]


def mask_of(case):
    """The left half is painted."""
    mask = Image.new("L", (case.width, case.height))
    mask.paste(255, (0, 0, case.width // 2, case.height))
    return mask


def told(pipe, case, captions, seed=7):
    """What training tells the denoiser of captions, and of sources as the cache has them."""
    if sound := family_of(pipe).sound:
        return sound.encode(pipe, captions, case.seconds, CPU)
    if not case.sources and not case.given:
        return family_of(pipe).encode(pipe, captions, CPU)
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        if case.given:
            return told_of_frames(pipe, case, captions, seed, folder)
        paths = [folder / f"{number}.png" for number in range(len(case.sources))]
        for path, image in zip(paths, sources_of(case, seed), strict=True):
            image.save(path)
        mask_of(case).save(folder / "mask.png")
        picture(5, case.height, case.width).save(folder / "picture.png")
        mask = folder / "mask.png" if case.is_filled else None
        sources = tuple(map(Source, paths))
        examples = [Example(folder / "picture.png", caption, sources=sources, mask=mask) for caption in captions]
        examples, _ = check_images(examples, skip_bad=False)
        examples = with_sources(examples, family_of(pipe), "pipeline")
        size = (case.width, case.height)
        encoder = Encoder(pipe, family_of(pipe), folder, CPU, [size], True, False, 0, lambda *_: None)
        return encoder.encode(examples).batch(range(len(captions))).conditions


def told_of_frames(pipe, case, captions, seed, folder):
    """What training tells the denoiser of captions and of given frames, as the cache has them."""
    for number, image in enumerate(frames_of(case, seed)):
        image.save(folder / f"frame{number + 1}.png")
    examples, _ = check_images([Example(folder, caption) for caption in captions], skip_bad=False, clips=True)
    examples, _ = fit_clips(examples, [case.frames], 16.0, skip_bad=False)
    examples = with_sources(examples, family_of(pipe), "pipeline", last_frame=case.given == 2)
    size = (case.width, case.height)
    with TemporaryDirectory() as cache:
        encoder = Encoder(pipe, family_of(pipe), Path(cache), CPU, [size], True, False, 0, lambda *_: None)
        return encoder.encode(examples).batch(range(len(captions))).conditions


def pictures(case, count=1):
    """Or clips, of a base of videos; the one whose frames are given, where some are; or sounds."""
    if case.given:
        return to_clip(frames_of(case), (case.width, case.height))[None]
    generator = torch.Generator().manual_seed(5)
    if case.seconds:
        sound = family_of(case.pipeline()).sound
        return torch.rand(count, sound.channels, sound.samples(case.seconds), generator=generator) - 0.5
    frames = (case.frames,) if case.frames else ()
    return torch.rand(count, 3, *frames, case.height, case.width, generator=generator) * 2 - 1


def encoded_sound(pipe, samples):
    """As the pipeline's autoencoder has it, without a draw."""
    if "sample_posterior" in inspect.signature(pipe.vae.encode).parameters:
        return pipe.vae.encode(samples, sample_posterior=False).latents
    output = pipe.vae.encode(samples)
    return output.latent_dist.mean if hasattr(output, "latent_dist") else output.latents
