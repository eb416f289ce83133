"""What a run will cost, before it runs: sizes are counted, times are extrapolated from one timed call each."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fera.config import OptimizationConfig, TrainConfig
from fera.data.buckets import Shape, Size
from fera.data.captions import caption_variants
from fera.data.example import Example
from fera.models.components import offloadable_blocks
from fera.models.families import Family, family_of, trained_denoiser
from fera.pipelines.block_offload import blocks_on_device
from fera.training.start.kappa import with_kappa
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
        memory_bytes: of the device by `train.offload`, the run's own first: weights, and the adapter with its gradients
            and optimizer; activations come on top and grow with batch and picture size. With "blocks" the rest of the
            weights is in the machine's memory, with "disk" in the base's files.
        encoding_seconds: the encoding seconds of an empty cache.
        step_seconds: the seconds of one optimizer step.
        training_seconds: the seconds of all steps; without pictures and held-out losses along the way.
    """

    device: str
    latents: int
    captions: int
    cache_bytes: int
    trained_parameters: int
    memory_bytes: dict[str, int]
    encoding_seconds: float
    step_seconds: float
    training_seconds: float


@torch.no_grad()
def estimate(
    pipe: Any, config: TrainConfig, examples: Sequence[Example], shapes: Sequence[Shape], device: torch.device
) -> Estimates:
    """Estimate what a run will cost. The pipeline gets a fresh adapter and is not to be used afterwards.

    Args:
        pipe: the base, as for training.
        config: the configuration of the run.
        examples: all that it trains on or holds out, each once.
        shapes: width and height in pixels that each is brought to and, of clips, the number of frames.
        device: where to time.
    """
    family = family_of(pipe)
    denoiser: Any = trained_denoiser(pipe, config.adapter.component)[1]
    settings = config.train
    encoders: list[nn.Module] = [
        part
        for part in (getattr(pipe, name) for name in ("vae", *family.text_components))
        if isinstance(part, nn.Module)
    ]
    for part in (*encoders, denoiser):
        part.to(device)
    common = Counter(shapes).most_common(1)[0][0]
    width, height, *frames = common
    pixels = torch.zeros(1, 3, *frames, height, width, device=device, dtype=pipe.vae.dtype)
    latent = family.encode_pictures(pipe.vae, pixels)
    conditions = _encode_caption(pipe, family, examples, device)
    batch = min(settings.batch_size, max(1, len(examples)))
    noisy = latent.expand(batch, *latent.shape[1:]).to(denoiser.dtype)
    timesteps = torch.full((batch,), 500, device=device)
    told = conditions | _told_of_sources(family, examples, latent, (width, height))
    together = {key: value.expand(batch, *value.shape[1:]) for key, value in told.items()}

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
    if config.trains_text:
        trained += sum(parameter.numel() for parameter in TextTraining(pipe, family, config, device).parameters)
    frozen = {offload: _frozen_bytes(denoiser, settings, offload) for offload in _offloads(denoiser, config)}
    # Encoders go before training begins, unless pictures are drawn along the way.
    encoder_bytes = sum(parameter.nbytes for part in encoders for parameter in part.parameters())
    trained_bytes = bytes_a_trained_parameter(settings) * trained
    stay = config.validation.prompts or config.trains_text
    return Estimates(
        device=str(device),
        latents=len(different) * mirrorings,
        captions=len(captions | {""}),
        cache_bytes=latent_bytes + len(captions | {""}) * caption_bytes,
        trained_parameters=trained,
        memory_bytes={
            offload: held + trained_bytes + encoder_bytes if stay else max(held + trained_bytes, encoder_bytes)
            for offload, held in frozen.items()
        },
        encoding_seconds=encode_seconds * len(different) * mirrorings + caption_seconds * len(captions | {""}),
        step_seconds=step_seconds,
        training_seconds=step_seconds * settings.steps,
    )


def _volume(shape: Shape, stride: int) -> int:
    """Pixels of a picture, or of a clip's frames that become a frame of the latent each."""
    width, height, *frames = shape
    return width * height * (1 + sum(count - 1 for count in frames) // stride)


def _offloads(denoiser: nn.Module, config: TrainConfig) -> list[str]:
    """The values of `train.offload` that a run could have, that of the run first."""
    if not offloadable_blocks(denoiser) or config.adapter.full or config.quantization == "8bit":
        return [config.train.offload]
    others = ["none", "blocks"] if config.quantization != "none" else ["none", "blocks", "disk"]
    return list(dict.fromkeys([config.train.offload, *others]))


def _frozen_bytes(denoiser: nn.Module, settings: OptimizationConfig, offload: str) -> int:
    """Memory of the device for frozen weights: all of them, or those outside of blocks and of the largest blocks."""
    frozen = sum(parameter.nbytes for parameter in denoiser.parameters() if not parameter.requires_grad)
    if offload == "none":
        return frozen
    blocks = sorted(
        sum(parameter.nbytes for parameter in block.parameters() if not parameter.requires_grad)
        for block in offloadable_blocks(denoiser)
    )
    return frozen - sum(blocks[: max(0, len(blocks) - blocks_on_device(settings.blocks_on_device))])


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
    if pairs is None or pairs.encode is None:
        return family.encode(pipe, captions, device)
    example = max(examples, key=lambda one: len(one.sources))
    sizes = [
        source.size if pairs.size is None else pairs.size(source.size, example.size, example.size)
        for source in example.sources
    ]
    return pairs.encode(pipe, captions, [Image.new("RGB", size, "gray") for size in sizes], device)


def _told_of_sources(family: Family, examples: Sequence[Example], latent: Tensor, size: Size) -> dict[str, Tensor]:
    """Sources as large as the picture's latent, and a hole, where the base is told of any."""
    if family.pairs is None:
        return {}
    count = max(len(example.sources) for example in examples)
    hole = {"hole": latent.new_zeros(1, 1, *size[::-1])} if family.pairs.hole else {}
    return {f"source_{number}": latent for number in range(count)} | hole
