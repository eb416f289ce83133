"""What a run starts from: a base and pictures, found, checked and encoded."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fera.bases import load_base
from fera.errors import FeraError
from fera.pipelines import denoisers
from fera.training.buckets import MAX_ASPECT, Size, assign_sizes, bucket_sizes, describe_buckets
from fera.training.cache import EncodedSet, Encoder
from fera.training.config import TrainConfig
from fera.training.data import Example, check_images, find_examples, hold_out, some_of
from fera.training.families import Family, family_of
from fera.training.objective import NoiseProcess, noise_process
from fera.training.reporting import Reporter

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Sources:
    """A base and pictures, before anything is encoded.

    Args:
        pipe: the pipeline, on the CPU.
        name: of its denoiser, as the pipeline calls it.
        denoiser: its denoiser.
        family: of the pipeline.
        dtype: of the weights, but for the autoencoder's.
        process: how its latents are noised.
        training: training examples.
        held_out: validation examples.
        skipped: one line about each picture left out.
        resolution: side of the square training size in pixels.
        buckets: sizes to train at; the square alone where buckets are off.
    """

    pipe: Any
    name: str
    denoiser: nn.Module
    family: Family
    dtype: torch.dtype
    process: NoiseProcess
    training: list[Example]
    held_out: list[Example]
    skipped: list[str]
    resolution: int
    buckets: list[Size]


def open_sources(config: TrainConfig, reporter: Reporter) -> Sources:
    """Load and check.

    Args:
        config: of the run.
        reporter: hears what was found.

    Raises:
        FeraError: something in the data or the base cannot work.
    """
    examples, held_out, skipped = _read_data(config, reporter)
    dtype = _DTYPES[config.train.mixed_precision]
    # The autoencoder encodes in float32: some overflow in half precision.
    dtypes = {"vae": torch.float32, "default": dtype}
    pipe = load_base(config.base, revision=config.revision, variant=config.variant, dtype=dtypes)
    family = family_of(pipe)
    name, denoiser = next(iter(denoisers(pipe).items()))
    process = noise_process(pipe.scheduler, config.train.prediction_type)
    resolution, buckets = _sizes(pipe, denoiser, config)
    _report_sizes(examples, buckets, config, reporter)
    _report_long(examples, pipe.tokenizer, reporter)
    return Sources(
        pipe=pipe,
        name=name,
        denoiser=denoiser,
        family=family,
        dtype=dtype,
        process=process,
        training=examples,
        held_out=held_out,
        skipped=skipped,
        resolution=resolution,
        buckets=buckets,
    )


def encode(
    sources: Sources, config: TrainConfig, device: torch.device, reporter: Reporter
) -> tuple[EncodedSet, EncodedSet | None]:
    """Encode training and validation examples into the run's cache; the latter are None where there are none."""
    encoder = Encoder(
        pipe=sources.pipe,
        family=sources.family,
        folder=config.data.cache_dir or config.output_dir / "cache",
        device=device,
        buckets=sources.buckets,
        center_crop=config.data.center_crop,
        random_flip=config.data.random_flip,
        seed=config.seed,
        progress=reporter.advance,
    )
    return encoder.encode(sources.training), encoder.encode(sources.held_out) if sources.held_out else None


def _read_data(config: TrainConfig, reporter: Reporter) -> tuple[list[Example], list[Example], list[str]]:
    data = config.data
    examples, skipped = check_images(find_examples(data.train_data_dir, data), skip_bad=data.skip_bad)
    if data.validation_data_dir is not None:
        found = find_examples(data.validation_data_dir, data)
        held_out, also_skipped = check_images(found, skip_bad=data.skip_bad)
        skipped += also_skipped
    else:
        examples, held_out = hold_out(examples, data.validation_fraction)
    if skipped:
        reporter.say(f"skipped {len(skipped)} pictures: {some_of(skipped)}")
    reporter.say(f"{len(examples)} training pictures from {data.train_data_dir}, {len(held_out)} held out:")
    for example in examples[:3]:
        reporter.say(f"  {example.image.name}: {example.caption or '(no caption)'}")
    return examples, held_out, skipped


def _sizes(pipe: Any, denoiser: nn.Module, config: TrainConfig) -> tuple[int, list[Size]]:
    """The resolution, and the sizes to train at."""
    settings: Any = denoiser.config
    multiple = pipe.vae_scale_factor * (getattr(settings, "patch_size", None) or 1)
    native = settings.sample_size
    data = config.data
    resolution = data.resolution or (native if isinstance(native, int) else native[0]) * pipe.vae_scale_factor
    if resolution % multiple:
        raise FeraError(f"data.resolution is {resolution}, but this base needs a multiple of {multiple}")
    if not data.enable_bucket:
        return resolution, [(resolution, resolution)]
    step = data.bucket_reso_steps or max(1, resolution // 8 // multiple) * multiple
    if step % multiple or step >= resolution:
        raise FeraError(
            f"data.bucket_reso_steps is {step}, but this base needs a multiple of {multiple} below the resolution, "
            f"{resolution}"
        )
    return resolution, bucket_sizes(resolution, step)


def _report_sizes(examples: list[Example], buckets: list[Size], config: TrainConfig, reporter: Reporter) -> None:
    """How many pictures are trained at which size, and which of them suffer."""
    sizes = assign_sizes(examples, buckets)
    if config.data.enable_bucket:
        lines = describe_buckets(sizes, config.train.batch_size)
        reporter.say(f"{len(lines)} buckets (width x height):")
        for line in lines:
            reporter.say(f"  {line}")
        if long := [example.image.name for example in examples if max(example.size) > MAX_ASPECT * min(example.size)]:
            reporter.say(
                f"{len(long)} pictures are longer than 1:{MAX_ASPECT:g} and are cropped to it: {some_of(long)}"
            )
    small = [
        example.image.name
        for example, size in zip(examples, sizes, strict=True)
        if example.size[0] < size[0] or example.size[1] < size[1]
    ]
    if small:
        target = "their bucket" if config.data.enable_bucket else f"{buckets[0][0]} px"
        reporter.say(f"{len(small)} pictures are smaller than {target} and are enlarged: {some_of(small)}")


def _report_long(examples: list[Example], tokenizer: Any, reporter: Reporter) -> None:
    limit = tokenizer.model_max_length
    tokens = tokenizer([example.caption for example in examples], truncation=False).input_ids
    long = [example.image.name for example, ids in zip(examples, tokens, strict=True) if len(ids) > limit]
    if long:
        reporter.say(f"{len(long)} captions exceed the {limit} tokens of the text encoder and are cut: {some_of(long)}")
