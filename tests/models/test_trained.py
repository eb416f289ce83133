"""Every family, against its own pipeline: the same latent, noise level and caption give what the scheduler gets."""

import inspect
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
from clip_cases import clip_folder
from diffusers import (
    CogVideoXDDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
)
from peft import inject_adapter_in_model
from PIL import Image
from sound_cases import sound_folder
from tiny import make_unet
from torch.nn import functional
from trained_cases import CASES
from training_cases import log_of, power_cut, run_config
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.cli.main import main
from fera.data.cache.encoder import Encoder
from fera.data.checking import check_images
from fera.data.clips.fitting import fit_clips
from fera.data.example import Example, Source
from fera.data.pair_checks import with_sources
from fera.data.tensors import to_clip
from fera.errors import FeraError
from fera.generation import generate, generate_clips, generate_sounds
from fera.generation.sources import brought_to
from fera.models import CallReader, find, layouts_video
from fera.models.components import denoisers
from fera.models.families import FAMILIES, family_of, latent_scale, native_resolution, size_multiple, video_of
from fera.models.layouts import count_channels
from fera.models.noise import noise_process
from fera.training import to_toml, train
from fera.training.start.checkpointing import checkpoint_gradients
from models import chroma, ernie_image, hunyuan, stable_diffusion
from models.inputs import picture

CAPTION = "a red rocket"
CPU = torch.device("cpu")


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture
def pipe(case, monkeypatch):
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
        call["prompt"] = CAPTION
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


@torch.no_grad()
def test_a_prediction_is_what_the_scheduler_gets(pipe, case):
    with Recorder(pipe) as seen:
        draw(pipe, case)
    assert len(seen.outputs) == len(seen.calls) == 2
    family = family_of(pipe)
    conditions = told(pipe, case, [CAPTION])
    for latent, level, output in zip(seen.latents, seen.levels, seen.outputs, strict=True):
        latent = latent[: len(output)]  # without the copy of those that guide in any case
        prediction = family.predict(seen.denoiser, latent, level, conditions)
        assert prediction.shape == latent.shape and output.std() > 1e-3
        torch.testing.assert_close(prediction, output, rtol=1e-4, atol=1e-5)


def test_training_mode_changes_nothing(pipe, case):
    """With gradients, the denoiser in training mode, its activations computed again."""
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    conditions = told(pipe, case, [CAPTION])
    noisy = torch.randn_like(family.clean_latents(pipe.vae, pictures(case)))
    with torch.no_grad():
        expected = family.predict(denoiser, noisy, at(pipe, 0.5), conditions)
    denoiser.train()
    if not family.no_checkpointing:
        checkpoint_gradients(denoiser, family)
    prediction = family.predict(denoiser, noisy, at(pipe, 0.5), conditions)
    torch.testing.assert_close(prediction.detach(), expected, rtol=1e-4, atol=1e-5)
    prediction.square().mean().backward()
    assert any(weight.grad is not None and weight.grad.any() for weight in denoiser.parameters())


def test_checkpointing_that_diffusers_does_wrongly_is_refused():
    pipe = chroma.make_pipeline()
    with pytest.raises(FeraError, match="gradient_checkpointing is set, but diffusers 0.42 forgets the mask"):
        checkpoint_gradients(pipe.transformer, family_of(pipe))


@pytest.mark.parametrize("name", ["kandinsky5", "qwen-image-2.1", "hunyuan-image"])
def test_recomputed_activations_see_the_gates_of_their_forward(name):
    """Captions of two lengths may be two forwards before one backward; some blocks are called with keywords."""
    pipe = next(case for case in CASES if case.name == name).pipeline()
    family, denoiser = family_of(pipe), pipe.transformer
    fill(inject_adapter_in_model(FeraConfig(r=2), denoiser))
    denoiser.train()
    conditions = family.encode(pipe, [CAPTION, "the sun and moon and a green tree"], CPU)
    noisy = torch.randn(2, 4, 8, 12)

    def gradients():
        denoiser.zero_grad()
        family.predict(denoiser, noisy, torch.tensor([300.0, 700.0]), conditions).square().mean().backward()
        return {key: weight.grad.clone() for key, weight in denoiser.named_parameters() if weight.grad is not None}

    kept = gradients()
    checkpoint_gradients(denoiser, family)
    recomputed = gradients()
    assert kept.keys() == recomputed.keys() and len(kept) > 5
    for key, gradient in kept.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_half_precision_predicts_nearly_the_same(pipe, case, tmp_path):
    """As training casts: weights, latents and conditions, masks among them."""
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    conditions = told(pipe, case, [CAPTION])
    noisy = torch.randn_like(family.clean_latents(pipe.vae, pictures(case)))
    expected = family.predict(denoiser, noisy, at(pipe, 0.5), conditions)
    denoiser.save_pretrained(tmp_path)  # some keep a few of their weights as they are when they are loaded
    half = type(denoiser).from_pretrained(tmp_path, dtype=torch.bfloat16)
    cast = family.cast(conditions, torch.bfloat16)
    prediction = family.predict(half, noisy.bfloat16(), at(pipe, 0.5), cast)
    assert prediction.isfinite().all()
    assert (prediction.float() - expected).norm() < 0.1 * expected.norm()


@torch.no_grad()
def test_the_length_of_a_caption_is_exact_in_half_precision():
    """A sum of ones in bfloat16 is not, from 257 on."""
    pipe = ernie_image.make_pipeline()
    transformer = pipe.transformer.bfloat16()
    conditions = {"text_bth": torch.randn(1, 301, 8).bfloat16(), "mask": torch.ones(1, 301).bfloat16()}
    with Recorder(pipe) as seen:
        noisy = torch.randn(1, 4, 8, 8).bfloat16()
        family_of(pipe).predict(transformer, noisy, torch.tensor([500.0]), conditions)
    assert seen.arguments()["text_lens"].tolist() == [301]


@torch.no_grad()
def test_training_calls_the_denoiser_with_its_latent(pipe, case):
    """The gate sees the noisy latent as training has it."""
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    conditions = told(pipe, case, [CAPTION])
    noisy = torch.randn_like(family.clean_latents(pipe.vae, pictures(case)))
    with Recorder(pipe) as seen:
        for level in (0.001, 0.5, 0.999):
            family.predict(denoiser, noisy, at(pipe, level), conditions)
    assert all(torch.equal(latent, noisy) for latent in seen.latents)
    levels = [float(seen.reader.noise_level(args, kwargs, noisy)) for args, kwargs in seen.calls]
    assert levels[0] == pytest.approx(0, abs=0.01) and levels[2] == pytest.approx(1, abs=0.01)
    assert levels == sorted(levels)


@torch.no_grad()
def test_a_picture_becomes_the_latent_that_the_pipeline_decodes_to_it(pipe, case):
    pixels = pictures(case)
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    latent = family.clean_latents(pipe.vae, pixels)
    with Recorder(pipe) as seen:
        family.predict(denoiser, latent, at(pipe, 0.5), told(pipe, case, [CAPTION]))
    # As the scheduler has it: as training passes it to the denoiser, there maybe behind the tokens of a text.
    given = seen.arguments()[find(denoiser).latent]
    if not torch.is_tensor(given):  # a picture each, behind its references
        given = torch.stack([entry[-1] if isinstance(entry, list) else entry for entry in given]).squeeze(2)

    def final(sample):
        if case.sources:  # in further channels or tokens
            return given[:, : sample.shape[1], ..., : sample.shape[-1]]
        if case.seconds:
            return given
        if case.given and given.ndim == 3:  # tokens, of which the scheduler has those that are drawn
            return given.unflatten(1, (-1, *sample.shape[3:])).movedim(-1, 1)[:, :, -sample.shape[2] :]
        if case.given and find(denoiser).view is layouts_video.frames_first:
            return given[:, :, : sample.shape[2]]
        if case.given:
            return given[:, : sample.shape[1], -sample.shape[2] :]
        if case.frames:  # channels of what is given follow, first or last
            return given[:, : sample.shape[1], ..., : sample.shape[-1]]
        return (given[:, -sample.shape[1] :] if sample.ndim == 3 else given).reshape(sample.shape)

    with Recorder(pipe, replace=final) as seen:
        drawn = draw(pipe, case, output_type="pt")
    if pipe.vae.config.get("in_channels") == 4 and pipe.vae.config.get("out_channels") == 4:  # opaque
        pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
    if case.seconds:
        torch.testing.assert_close(seen.decoded[0], encoded_sound(pipe, pixels), rtol=1e-4, atol=1e-5)
        return
    if pixels.ndim == 5 and seen.decoded[0].ndim == 4:  # frames, each a picture
        pixels = pixels.transpose(1, 2).flatten(0, 1)
    output = pipe.vae.encode(pixels if seen.decoded[0].ndim == pixels.ndim else pixels[:, :, None])
    mean = output.latent_dist.mean if hasattr(output, "latent_dist") else output.latent
    if case.given and latent[0].numel() < mean[0].numel():  # the first frame is a picture, encoded by itself
        picture = pipe.vae.encode(pixels[:, :, :1])
        mean = torch.cat([picture.latent_dist.mean, mean[:, :, 1:]], dim=2)
    torch.testing.assert_close(seen.decoded[0], mean, rtol=1e-4, atol=1e-5)
    counted = "num_frames" in inspect.signature(type(pipe.vae).decode).parameters
    decoded = pipe.vae.decode(mean, return_dict=False, **{"num_frames": len(mean)} if counted else {})[0]
    decoded = decoded.transpose(1, 2) if decoded.ndim == 5 and case.frames else decoded.reshape(drawn.shape)
    torch.testing.assert_close(torch.as_tensor(drawn), (decoded / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_noise_process_is_the_schedulers(pipe, case):
    """Flow matching: steps of the scheduler that get the target for a prediction lead to the picture."""
    process, scheduler = noise_process(pipe.scheduler), pipe.scheduler
    latent = family_of(pipe).clean_latents(pipe.vae, pictures(case))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    with Recorder(pipe) as seen:
        draw(pipe, case)
    level = seen.levels[0]
    if process.sigmas is not None:
        check_edm(process, scheduler, latent, noise)
        return
    if process.is_angle:  # a noisier sample than data: the denoiser gets it scaled down
        sigma = seen.sigmas[0]
        noisy = scheduler.precondition_inputs(latent + sigma * noise, sigma)
        torch.testing.assert_close(process.add_noise(latent, noise, level), noisy, rtol=1e-4, atol=1e-4)
        target = process.target(latent, noise, level)
        clean = scheduler.precondition_outputs(latent + sigma * noise, target, sigma)
        torch.testing.assert_close(clean, latent, rtol=1e-3, atol=2e-4 * float(sigma))
        return
    if not process.is_flow:
        level = level.long()
        if not isinstance(scheduler, CogVideoXDDIMScheduler):  # which changes what its settings say
            scheduler = DDPMScheduler.from_config(scheduler.config)  # others scale what they noise
        expected = scheduler.add_noise(latent, noise, level)
        torch.testing.assert_close(process.add_noise(latent, noise, level), expected, rtol=1e-5, atol=1e-5)
        velocity = process.prediction_type == "v_prediction"
        expected = scheduler.get_velocity(latent, noise, level) if velocity else noise
        torch.testing.assert_close(process.target(latent, noise, level), expected, rtol=1e-5, atol=1e-5)
        return
    level = noise_levels(scheduler)[:1]  # the timestep may be rounded
    sample = process.add_noise(latent, noise, level)
    target = process.target(latent, noise, level)
    scheduler.set_begin_index(0)
    scheduler._step_index = None
    for timestep in scheduler.timesteps:
        sample = scheduler.step(direction(scheduler) * target, timestep, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, latent, rtol=1e-4, atol=1e-4)


def check_edm(process, scheduler, latent, noise):
    """Steps of the scheduler, which scales what the denoiser gets."""
    scheduler.set_timesteps(3)
    sample = latent + scheduler.sigmas[0] * noise
    for timestep in scheduler.timesteps:
        level = timestep.reshape(1)
        expected = scheduler.scale_model_input(sample, timestep)
        torch.testing.assert_close(process.add_noise(latent, noise, level), expected, rtol=1e-4, atol=1e-4)
        sample = scheduler.step(process.target(latent, noise, level), timestep, sample, return_dict=False)[0]
    torch.testing.assert_close(sample, latent, rtol=1e-4, atol=1e-4)
    ends = torch.tensor([math.log(sigma) / 4 for sigma in (700.0, 0.002)])
    torch.testing.assert_close(process.timesteps(torch.tensor([0.0, 1.0])), ends, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(process.noise_levels(ends), torch.tensor([1.0, 0.0]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_captions_of_a_batch_do_not_mix(pipe, case):
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    captions = [CAPTION, "the sun and moon and a green tree"]
    noisy = torch.randn(2, *family.clean_latents(pipe.vae, pictures(case)).shape[1:])
    timesteps = torch.cat([at(pipe, 0.3), at(pipe, 0.7)])
    both = family.predict(denoiser, noisy, timesteps, told(pipe, case, captions))
    for row, caption in enumerate(captions):
        conditions = told(pipe, case, [caption])
        alone = family.predict(denoiser, noisy[row : row + 1], timesteps[row : row + 1], conditions)
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if case.sources or case.given], ids=lambda case: case.name)
def test_sources_are_seen(case, monkeypatch):
    case.patch(monkeypatch)
    pipe = case.pipeline()
    family, denoiser = family_of(pipe), next(iter(denoisers(pipe).values()))
    noisy = torch.randn_like(family.clean_latents(pipe.vae, pictures(case)))
    ones, others = (told(pipe, case, [CAPTION], seed) for seed in (7, 70))
    one, other = (family.predict(denoiser, noisy, torch.tensor([500.0]), each) for each in (ones, others))
    assert not torch.allclose(one, other, atol=1e-4)
    if "encoder_hidden_states" not in ones:
        return
    reads_them = not torch.allclose(ones["encoder_hidden_states"], others["encoder_hidden_states"], atol=1e-4)
    assert reads_them == (family.pairs.encode is not None)


def test_reading_a_caption_leaves_adapters_and_random_numbers_alone():
    pipe = chroma.make_pipeline()
    inject_adapter_in_model(FeraConfig(r=2), pipe.transformer)
    state = torch.get_rng_state()
    with fera.trace(pipe) as steps:
        family_of(pipe).encode(pipe, [CAPTION], CPU)
    assert steps == [] and torch.equal(torch.get_rng_state(), state)


def pair_settings(case, image_folder, tmp_path):
    """Keys of [data] and [validation] for a case that has sources; nothing for the others."""
    if not case.sources:
        return {}, {}
    folders = []
    for number, one in enumerate(sources_of(case)):
        folders.append(tmp_path / f"sources-{number}")
        folders[-1].mkdir()
        for image in image_folder.glob("*.png"):
            same = one.size == (case.width, case.height)
            (one.resize(Image.open(image).size) if same else one).save(folders[-1] / image.name)
    data = {"source_path": [] if case.is_filled else list(map(str, folders))}
    drawn = {"sources": ["|".join(str(folder / "0.png") for folder in folders)]}
    if case.is_filled:
        masks = tmp_path / "masks"
        masks.mkdir()
        for image in image_folder.glob("*.png"):
            mask_of(case).resize(Image.open(image).size).save(masks / image.name)
        data["mask_path"], drawn["masks"] = masks, [str(masks / "0.png")]
    return data, drawn


def moving(folder, case):
    """A folder of clips, without the still picture where frames are given."""
    if case.given:
        (folder / "e.png").unlink()
        (folder / "e.txt").unlink()
    return folder


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.variant) for case in CASES],
)
def test_it_trains_resumes_and_draws(pipe, case, image_folder, tmp_path):
    """From a saved pipeline to a picture, by the command line; the denoiser is cut off after its first step."""
    pipe.save_pretrained(tmp_path / "base")
    case.repair(tmp_path / "base")
    data, drawn = pair_settings(case, image_folder, tmp_path)
    folder = image_folder
    if case.frames:
        data |= {"num_frames": [case.frames], "frame_rate": 16, "last_frame": case.given == 2}
        folder = moving(clip_folder(tmp_path / "clips"), case)
    if case.given:  # drawn from a held-out clip
        data["validation_fraction"], drawn = 0.25, {"loss_samples": 2}
    if case.seconds:
        rate = family_of(pipe).sound.rate
        data |= {"seconds": [case.seconds]}
        folder = sound_folder(tmp_path / "sounds", seconds=case.seconds, rate=rate)
        drawn = {"loss_samples": 2}
    else:
        data |= {"resolution": max(case.height, case.width)}
    config = run_config(
        tmp_path / "base",
        folder,
        tmp_path / "run",
        data=data,
        train={"steps": 2, "checkpointing_steps": 1, "consistency_weight": 0.1},
        adapter={"r": 2},
        **({"validation": {"prompts": [CAPTION], "num_inference_steps": 2, **drawn}} if drawn else {}),
    )
    (tmp_path / "run.toml").write_text(to_toml(config))
    with power_cut(1):
        train(config)
    assert main(["train", str(tmp_path / "run.toml"), "--resume"]) == 0
    assert len(log_of(config, "loss")) == 2
    assert not drawn or len(list((tmp_path / "run" / "samples").glob("step-*.png"))) == 2
    plain = draw(pipe, case)
    fera.load_adapter(pipe, tmp_path / "run")
    assert not torch.equal(draw(pipe, case), plain)
    if case.given:
        assert len(list((tmp_path / "run" / "samples").glob("step-*.mp4"))) == 2
        frames = generate_clips(
            pipe,
            [CAPTION],
            num_inference_steps=2,
            num_frames=case.frames,
            sources=[sources_of(case)],
            height=case.height,
            width=case.width,
        )[0]
        assert len(frames) == case.frames and frames[0].size == (case.width, case.height)
        return
    if case.seconds:
        with fera.trace(pipe) as steps:
            (sound,) = generate_sounds(pipe, [CAPTION], num_inference_steps=2, seconds=case.seconds)
        assert sound.seconds == pytest.approx(case.seconds, rel=0.1) and sound.samples.std() > 0
        assert len(steps) >= 2 and all(step.indicator.shape[1] == 3 for step in steps)
        return
    with fera.trace(pipe) as steps:
        given = {"sources": [sources_of(case)]} if case.sources else {}
        given |= {"masks": [mask_of(case)]} if case.is_filled else {}
        picture = generate(pipe, [CAPTION], num_inference_steps=2, height=case.height, width=case.width, **given)[0]
    assert picture.size == (case.width, case.height)
    assert all(0 <= float(gate) <= 1 for step in steps for gate in step.gates.flatten())


def first_latent(pipe, case):
    """As the pipeline's denoiser is given it."""
    with Recorder(pipe) as seen:
        draw(pipe, case)
    return seen.arguments()[find(seen.denoiser).latent]


def test_sizes(pipe, case):
    latent = family_of(pipe).clean_latents(pipe.vae, pictures(case))
    if sound := family_of(pipe).sound:
        channels = find(pipe.transformer).view(pipe.transformer, first_latent(pipe, case), {}).shape
        assert latent.dtype == torch.float32 and latent.shape == channels
        assert latent.shape[2] == sound.frames(case.seconds)
        return
    side = latent_scale(pipe)
    assert latent.dtype == torch.float32
    assert latent.shape[2:] == (case.height // side, case.width // side)
    assert native_resolution(pipe) % size_multiple(pipe) == 0
    assert case.height % size_multiple(pipe) == case.width % size_multiple(pipe) == 0


def test_every_family_has_a_case():
    assert {type(case.pipeline()).__name__ for case in CASES} == set(FAMILIES)


def test_other_pipelines_are_refused_by_name():
    with pytest.raises(FeraError, match="cannot train a int yet; it can train: AceStepPipeline, .*StableDiffusionXL"):
        family_of(3)


def test_inpainting_without_a_hole_is_refused():
    components = stable_diffusion.make_inpaint_pipeline().components | {"unet": make_unet()}
    with pytest.raises(FeraError, match="this UNet inpaints by noise alone"):
        family_of(StableDiffusionInpaintPipeline(**components, requires_safety_checker=False))


def test_an_edit_that_is_not_saved_as_it_is_is_refused():
    with pytest.raises(FeraError, match="CosXL Edit is not saved as one"):
        family_of(stable_diffusion.make_xl_edit_pipeline(is_cosxl_edit=True))


def test_a_distilled_transformer_is_refused():
    pipe = hunyuan.make_image_pipeline()
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(FeraError, match="HunyuanImage is distilled"):
        family_of(pipe)


def test_the_page_names_every_pipeline():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in page] == []
