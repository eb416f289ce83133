"""What a run will cost, before it runs: sizes are counted, times are extrapolated from one timed call each."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fera.config import OptimizationConfig, TrainConfig
from fera.data.buckets import Shape
from fera.data.captions import caption_variants
from fera.data.example import Example
from fera.models.families import Family, family_of, trained_denoiser
from fera.models.noise import noise_process
from fera.pipelines.memory import Held
from fera.training.start.kappa import with_kappa
from fera.training.start.opening import part_dtypes
from fera.training.trained.kinds import adapter_of
from fera.training.trained.start_from import open_start
from fera.training.trained.text import TextTraining

# A backward pass costs about two forwards.
_FORWARDS_A_STEP = 3
# Weight and gradient of a trained parameter, in float32, and what each optimizer keeps beside them: most of them two
# moments. Adafactor's are sums over rows and columns.
_BYTES_A_TRAINED_PARAMETER = 8
_BYTES_OF_TWO_MOMENTS = 8
_BYTES_OF_OPTIMIZER = {"adamw8bit": 2, "prodigy": 16, "adafactor": 0}
_BYTES_OF_AVERAGE = 4
_HEADER_BYTES = 100


@dataclass(frozen=True)
class Estimates:
    """What a run will cost on the machine that asked.

    Args:
        device: where it was timed.
        latents: files of latents, one a picture and mirroring.
        captions: different captions to encode, all orders of tags and the empty one.
        cache_bytes: the cache bytes of all of these on disk.
        trained_parameters: the trained parameters of the adapter.
        memory_bytes: of the device: weights, and the adapter with its gradients and optimizer; activations come on top
            and grow with batch and picture size.
        parts: bytes of each part of the base as the run holds it; text encoders and the autoencoder are there while
            they encode, and those that train or draw all the time.
        choices: other ways to hold the denoiser, and the memory of the device that a run takes with each.
        encoding_seconds: the encoding seconds of an empty cache.
        step_seconds: the seconds of one optimizer step.
        training_seconds: the seconds of all steps; without pictures and held-out losses along the way.
    """

    device: str
    latents: int
    captions: int
    cache_bytes: int
    trained_parameters: int
    memory_bytes: int
    parts: dict[str, int]
    choices: list[tuple[Held, int]]
    encoding_seconds: float
    step_seconds: float
    training_seconds: float


@torch.no_grad()
def estimate(
    pipe: Any,
    config: TrainConfig,
    examples: Sequence[Example],
    shapes: Sequence[Shape],
    device: torch.device,
    ways: Sequence[Held],
) -> Estimates:
    """Estimate what a run will cost. The pipeline gets a fresh adapter and is not to be used afterwards.

    Args:
        pipe: the base, as for training, quantized where the configuration says so.
        config: the configuration of the run.
        examples: all that it trains on or holds out, each once.
        shapes: width and height in pixels that each is brought to and, of clips, the number of frames.
        device: where to time.
        ways: how the denoiser could be held, the run's own way first.
    """
    family = family_of(pipe)
    denoiser: Any = trained_denoiser(pipe, config.adapter.component)[1]
    settings = config.train
    eyes = family.pairs.eyes if family.pairs is not None else ()
    encoders: list[nn.Module] = [
        part
        for part in (getattr(pipe, name) for name in ("vae", *family.text_components, *eyes))
        if isinstance(part, nn.Module)
    ]
    for part in (*encoders, denoiser):
        part.to(device)
    common = Counter(shapes).most_common(1)[0][0]
    pixels = _blank(common, family).to(device, pipe.vae.dtype)
    latent = family.encode_pictures(pipe.vae, pixels)
    conditions = _encode_caption(pipe, family, examples, device)
    batch = min(settings.batch_size, max(1, len(examples)))
    dtype = part_dtypes(config)["default"]  # as training casts what a denoiser is told
    noisy = latent.expand(batch, *latent.shape[1:]).to(dtype)
    process = noise_process(pipe.scheduler, settings.prediction_type)
    timesteps = process.timesteps(torch.full((batch,), 0.5)).to(device)
    told = conditions | _told_of_sources(pipe, family, examples, latent, pixels)
    cast = family.cast(told, dtype)
    together = {key: value.expand(batch, *value.shape[1:]) for key, value in cast.items()}

    encode_seconds = _timed(lambda: family.encode_pictures(pipe.vae, pixels), device)
    caption_seconds = _timed(lambda: _encode_caption(pipe, family, examples, device), device)
    forward_seconds = _timed(lambda: family.predict(denoiser, noisy, timesteps, together), device)
    forwards = (
        _FORWARDS_A_STEP
        + (settings.consistency_fraction if settings.consistency_weight > 0 else 0)
        + settings.gradient_checkpointing
    )
    step_seconds = forward_seconds * forwards * settings.gradient_accumulation_steps * settings.batch_size / batch
    if config.trains_text:
        step_seconds += caption_seconds * _FORWARDS_A_STEP * settings.gradient_accumulation_steps * settings.batch_size

    different = {(example.digest, shape): shape for example, shape in zip(examples, shapes, strict=True)}
    for example, shape in zip(examples, shapes, strict=True):
        # About as large as the picture.
        different |= {(source.digest, shape): shape for source in example.sources}
    mirrorings = 2 if config.data.random_flip else 1
    stride = 1 if family.video is None else family.video.stride
    numbers = latent[0].numel() / _volume(common, stride)
    masks = 1 / latent.shape[1] if any(example.mask for example in examples) else 0
    latent_bytes = mirrorings * sum(
        int(_volume(shape, stride) * numbers * 4 * (1 + masks)) + _HEADER_BYTES for shape in different.values()
    )
    captions = {text for example in examples for text in caption_variants(example.caption, config.data, config.seed)}
    caption_bytes = sum(value[0].nbytes for value in conditions.values()) + _HEADER_BYTES

    with torch.enable_grad():
        settled = with_kappa(config, 1 / 128).adapter  # where it is still "auto", it counts the same
        adapter_of(settled, open_start(config.adapter, pipe)).add(denoiser)
    trained = sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
    stay = {"vae"} if config.validation.prompts else set()
    if config.trains_text:
        text = TextTraining(pipe, family, config, device)
        trained += sum(parameter.numel() for parameter in text.parameters)
        stay |= set(text.needed)
    trained_bytes = bytes_a_trained_parameter(settings) * trained
    sizes = {
        name: sum(parameter.nbytes for parameter in part.parameters())
        for name, part in ((name, getattr(pipe, name)) for name in ("vae", *family.text_components, *eyes))
        if isinstance(part, nn.Module)
    }
    memory = {way: _peak(way, trained_bytes, sizes, stay) for way in ways}
    return Estimates(
        device=str(device),
        latents=len(different) * mirrorings,
        captions=len(captions | {""}),
        cache_bytes=latent_bytes + len(captions | {""}) * caption_bytes,
        trained_parameters=trained,
        memory_bytes=memory[ways[0]],
        parts={trained_denoiser(pipe, config.adapter.component)[0]: ways[0].device_bytes, **sizes},
        choices=[(way, memory[way]) for way in ways[1:]],
        encoding_seconds=encode_seconds * len(different) * mirrorings + caption_seconds * len(captions | {""}),
        step_seconds=step_seconds,
        training_seconds=step_seconds * settings.steps,
    )


def _blank(shape: Shape, family: Family) -> Tensor:
    """A picture, a clip or a sound of a shape, as the autoencoder is given it."""
    if family.sound is not None:
        return torch.zeros(1, family.sound.channels, *shape)
    width, height, *frames = shape
    return torch.zeros(1, 3, *frames, height, width)


def _volume(shape: Shape, stride: int) -> int:
    """Pixels of a picture, or of a clip's frames that become a frame of the latent each; samples of a sound."""
    if len(shape) == 1:
        return shape[0]
    width, height, *frames = shape
    return width * height * (1 + sum(count - 1 for count in frames) // stride)


def _peak(way: Held, trained_bytes: int, encoders: Mapping[str, int], stay: Collection[str]) -> int:
    """The most that the device holds at a time: text encoders together, the autoencoder, or what training takes."""
    texts = sum(size for name, size in encoders.items() if name != "vae")
    training = way.device_bytes + trained_bytes + sum(encoders.get(name, 0) for name in stay)
    return max(training, texts, encoders.get("vae", 0))


def bytes_a_trained_parameter(settings: OptimizationConfig) -> int:
    """Memory of a trained parameter: the weight, its gradient, what the optimizer keeps, and the average."""
    optimizer = _BYTES_OF_OPTIMIZER.get(settings.optimizer, _BYTES_OF_TWO_MOMENTS)
    return _BYTES_A_TRAINED_PARAMETER + optimizer + (_BYTES_OF_AVERAGE if settings.use_ema else 0)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the second call; the first sets things up."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _encode_caption(pipe: Any, family: Family, examples: Sequence[Example], device: torch.device) -> dict[str, Tensor]:
    """Conditions of one caption, with grey pictures for sources where the text encoder sees them."""
    captions, pairs = ["a picture"], family.pairs
    if family.sound is not None and (excerpt := examples[0].excerpt) is not None:
        return family.sound.encode(pipe, captions, excerpt.told, device)
    if pairs is None or pairs.encode is None:
        return family.encode(pipe, captions, device)
    example = max(examples, key=lambda one: len(one.sources))
    sizes = [
        source.size if pairs.size is None else pairs.size(source.size, example.size, example.size)
        for source in example.sources
    ]
    return pairs.encode(pipe, captions, [Image.new("RGB", size, "gray") for size in sizes], device)


def _told_of_sources(
    pipe: Any, family: Family, examples: Sequence[Example], latent: Tensor, pixels: Tensor
) -> dict[str, Tensor]:
    """Sources as large as the picture's latent, and a hole, where the base is told of any; frames of a clip."""
    pairs = family.pairs
    if pairs is None:
        return {}
    height, width = pixels.shape[-2:]
    count = max(len(example.sources) for example in examples)
    grey = [Image.new("RGB", (width, height), "gray")] * count
    seen = pairs.see(pipe, grey, latent.device) if pairs.see is not None else {}
    if pairs.frames is not None:
        return seen | {"source_0": pairs.frames.latents(pipe.vae, [pixels[:, :, 0]] * count, pixels.shape[2])}
    hole = {"hole": latent.new_zeros(1, 1, height, width)} if pairs.hole else {}
    return seen | {f"source_{number}": latent for number in range(count)} | hole
