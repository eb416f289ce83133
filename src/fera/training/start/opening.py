"""What a run starts from: a base and pictures, found, checked and encoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fera.config import TrainConfig, ValidationConfig
from fera.data.buckets import (
    MAX_ASPECT,
    Size,
    assign_shapes,
    assign_sizes,
    bucket_sizes,
    default_step,
    describe_buckets,
)
from fera.data.caption_checks import check_cleaning, describe_limits, text_limits
from fera.data.checking import check_images, hold_out
from fera.data.clips.fitting import clip_settings, fit_clips
from fera.data.colours import describe_colours
from fera.data.example import Example, repeat, some_of
from fera.data.index import user_index
from fera.data.masks import add_masks, describe_shared_masks
from fera.data.pair_checks import with_sources
from fera.data.pairs import add_sources, describe_sources
from fera.data.sounds.fitting import describe_fitting, describe_lengths, fit_sounds, sound_lengths
from fera.data.sources import check_captions, find, scan_training
from fera.errors import FeraError
from fera.generation.sources import SEPARATOR, check_sources, in_turn, read_masks, read_sources
from fera.models.families import Family, family_of, native_resolution, size_multiple, sound_of, trained_denoiser
from fera.models.noise import NoiseProcess, noise_process
from fera.pipelines.block_offload import check_offload, offload_blocks
from fera.pipelines.compression import compress
from fera.pipelines.quantization import quantize
from fera.pipelines.quantization_kinds import check_quantization
from fera.pipelines.waiting import Base
from fera.pipelines.weight_files import dtype_of
from fera.support.progress import Listener
from fera.training.start.class_pictures import draws_class_images, prepare_class_images
from fera.training.trained.text import check_text_training

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Sources:
    """A base and pictures, before anything is encoded.

    Args:
        base: the base; its parts wait in their files, but for those that were needed already.
        name: the name of its denoiser, as the pipeline calls it.
        family: the family of the pipeline.
        dtype: the dtype of the weights, but for the autoencoder's.
        process: how its latents are noised.
        training: training examples.
        class_examples: class pictures, which keep the base as it is; most runs have none.
        held_out: validation examples.
        skipped: one line about each picture left out.
        resolution: side of the square training size in pixels.
        buckets: sizes to train at; the square alone where buckets are off.
        bucket_step: in pixels between their sides; None where buckets are off.
    """

    base: Base
    name: str
    family: Family
    dtype: torch.dtype
    process: NoiseProcess
    training: list[Example]
    class_examples: list[Example]
    held_out: list[Example]
    skipped: list[str]
    resolution: int
    buckets: list[Size]
    bucket_step: int | None

    @property
    def pipe(self) -> Any:
        """The pipeline."""
        return self.base.pipe

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser that trains; without weights until `open_denoiser`."""
        found: nn.Module = getattr(self.pipe, self.name)
        return found

    @property
    def lengths(self) -> list[int]:
        """Rows of training pictures, and of class pictures where there are any; an epoch sees both equally often."""
        counts = [len(repeat(examples)) for examples in (self.training, self.class_examples)]
        return [count for count in counts if count]


def open_sources(
    config: TrainConfig, listener: Listener, device: torch.device | None = None, *, former_buckets: bool = False
) -> Sources:
    """Find and check; parts of the base are loaded only where a check has to see their weights.

    Args:
        config: the configuration of the run.
        listener: hears what was found.
        device: where class pictures are drawn that are still missing; the CPU when left out.
        former_buckets: take the step between buckets that was once the default, where none is set.

    Raises:
        FeraError: something in the data or the base cannot work.
    """
    device = device or torch.device("cpu")
    check_quantization(config.quantization, device)
    examples, held_out, skipped = _read_data(config, listener)
    dtypes = part_dtypes(config)
    base = Base(config.base, dtypes, revision=config.revision, variant=config.variant)
    pipe = base.pipe
    family = family_of(pipe)
    name, denoiser = trained_denoiser(pipe, config.adapter.component)
    if name in base.waiting:
        check_offload(denoiser, config.train.offload, base.weight_files(name))
    if config.trains_text:
        base.bring(family.text_components)
    check_class_pictures(family, config)
    levels = family.ranges.get(name, (0.0, 1.0))
    process = replace(noise_process(pipe.scheduler, config.train.prediction_type), levels=levels)
    if family.sound is not None or config.data.reads_sounds:
        lengths = sound_lengths(config.data, family.sound, type(pipe).__name__)
        assert family.sound is not None
        examples, held_out = (fit_sounds(some, lengths, family.sound) for some in (examples, held_out))
        _report_sounds([*examples, *held_out], config, listener)
    if config.data.reads_clips:
        counts, rate = clip_settings(config.data, family.video, type(pipe).__name__)
        examples, short = fit_clips(examples, counts, rate, skip_bad=config.data.skip_bad)
        held_out, also_short = fit_clips(held_out, counts, rate, skip_bad=config.data.skip_bad)
        skipped += _report_clips([*examples, *held_out], [*short, *also_short], rate, listener)
    examples, held_out = (
        with_sources(some, family, type(pipe).__name__, last_frame=config.data.last_frame)
        for some in (examples, held_out)
    )
    check_drawing(pipe, config.validation, given_entries(family, held_out))
    config = with_bucket_step(config, pipe, former=former_buckets)
    resolution, buckets = training_sizes(pipe, config)
    _report_sizes(examples, buckets, config, listener)
    captioned = [*examples, *held_out]
    cleaned = check_cleaning(pipe, captioned, config.data.trigger_word)
    for line in [*cleaned, *describe_limits(text_limits(pipe, family, captioned))]:
        listener.say(line)
    check_text_training(pipe, family, config, examples)
    with base.using(base.waiting if draws_class_images(config) else ()):
        class_examples, also_skipped = prepare_class_images(pipe, config, resolution, device, listener)
    return Sources(
        base=base,
        name=name,
        family=family,
        dtype=dtypes["default"],
        process=process,
        training=examples,
        class_examples=class_examples,
        held_out=held_out,
        skipped=skipped + also_skipped,
        resolution=resolution,
        buckets=buckets,
        bucket_step=config.data.bucket_reso_steps,
    )


def part_dtypes(config: TrainConfig) -> dict[str, torch.dtype]:
    """The dtype of each part of a run's base by name, and "default" for the others."""
    # Weights that train are kept in float32, whatever forwards compute in.
    dtype = torch.float32 if config.adapter.full else _DTYPES[config.train.mixed_precision]
    # The autoencoder encodes in float32: some overflow in half precision.
    return {"vae": torch.float32, "default": dtype}


def open_denoiser(sources: Sources, config: TrainConfig, device: torch.device, listener: Listener) -> None:
    """Load the denoiser that trains, where it waits: compressed, quantized or with blocks that wait, as configured.

    Args:
        sources: the base.
        config: the configuration of the run.
        device: where it is to compute.
        listener: hears of progress.

    Raises:
        FeraError: it cannot be loaded, quantized or offloaded.
    """
    held = dtype_of(sources.base.weight_files(sources.name)) if config.quantization != "none" else None
    # What is to be quantized is mapped as its files hold it, and never in memory as a whole; but what the model
    # computes for itself, such as positions, is not to be rounded on the way.
    sources.base.bring([sources.name], dtype=held if held == torch.float32 else None)
    if config.compress.energy is not None:
        said = compress(sources.denoiser, config.compress.energy, device=device, listener=listener)
        listener.say(f"base: {said}")
    is_offloaded = config.train.offload != "none"
    where = torch.device("cpu") if is_offloaded else device
    quantize(sources.denoiser, config.quantization, where, sources.dtype)
    offload_blocks(sources.denoiser, device, config.train.offload, config.train.blocks_on_device)


def check_class_pictures(family: Family, config: TrainConfig) -> None:
    """Refuse class pictures where the base needs sources: they have none.

    Raises:
        FeraError: they are asked for.
    """
    if config.data.class_data_dir is not None and family.pairs is not None and family.pairs.least:
        raise FeraError("data.class_data_dir: this base draws from source pictures, which class pictures have none of")


def given_entries(family: Family, held_out: Sequence[Example]) -> list[str]:
    """What validation prompts without sources are drawn from, as `validation.sources` has it: held-out clips.

    Args:
        family: of the base.
        held_out: validation examples, with their sources.

    Returns:
        Entries to be taken in turn; none where the base is not given frames.
    """
    if family.pairs is None or family.pairs.frames is None:
        return []
    return [SEPARATOR.join(str(source.path) for source in example.sources) for example in held_out]


def check_drawing(pipe: Any, settings: ValidationConfig, given: Sequence[str] = ()) -> None:
    """Read the source pictures of validation prompts once, and hold them against what the base takes.

    Args:
        pipe: the base.
        settings: prompts and sources.
        given: entries of sources that are taken in turn where there are none.

    Raises:
        FeraError: one cannot be read, or the base takes others.
    """
    if settings.prompts:
        sources = read_sources(settings.sources or in_turn(given, len(settings.prompts)), len(settings.prompts))
        masks = read_masks(settings.masks, len(settings.prompts))
        try:
            check_sources(pipe, [len(pictures) for pictures in sources], len(masks))
        except FeraError as error:
            raise FeraError(f"validation.prompts: {error}") from error


def _read_data(config: TrainConfig, listener: Listener) -> tuple[list[Example], list[Example], list[str]]:
    data = config.data
    found = check_captions(scan_training(data), data.source, data)
    index = user_index()
    examples, skipped = check_images(
        add_masks(add_sources(found.examples, data), data),
        skip_bad=data.skip_bad,
        index=index,
        clips=data.reads_clips,
        sounds=data.reads_sounds,
    )
    if data.validation_data_dir is not None:
        others = find(data.validation_data_dir, data)
        held_out, also_skipped = check_images(
            add_sources(others.examples, data),
            skip_bad=data.skip_bad,
            index=index,
            clips=data.reads_clips,
            sounds=data.reads_sounds,
        )
        skipped += also_skipped
        found.notes.extend(f"{data.validation_data_dir}: {note}" for note in others.notes)
    else:
        examples, held_out = hold_out(examples, data.validation_fraction, data.held_out_stage)
    if skipped:
        listener.say(f"skipped {len(skipped)} {'sounds' if data.reads_sounds else 'pictures'}: {some_of(skipped)}")
    masks = describe_shared_masks([*examples, *held_out])
    for note in [*found.notes, *describe_sources(examples), *masks, *describe_colours([*examples, *held_out])]:
        listener.say(note)
    rows = len(repeat(examples))
    repeats = f" ({rows} an epoch, with repeats)" if rows > len(examples) else ""
    source = f"{len(data.stages)} stages" if data.stages else data.source
    listener.say(f"{len(examples)} training {data.things}{repeats} from {source}, {len(held_out)} held out:")
    for example in examples[:3]:
        listener.say(f"  {example.name}: {example.caption or '(no caption)'}")
    return examples, held_out, skipped


def _report_clips(examples: list[Example], short: list[str], rate: float, listener: Listener) -> list[str]:
    """Say what became of clips; `short` are those left out, and are returned."""
    if short:
        listener.say(f"skipped {len(short)} clips: {some_of(short)}")
    other = [e.name for e in examples if e.clip is not None and not e.clip.takes_every_frame(rate)]
    if other:
        listener.say(f"{len(other)} clips are brought to {rate:g} frames a second: {some_of(other)}")
    return short


def _report_sounds(examples: list[Example], config: TrainConfig, listener: Listener) -> None:
    lines = describe_lengths(examples, config.train.batch_size)
    listener.say(f"{len(lines)} length{'' if len(lines) == 1 else 's'}:")
    for line in [*(f"  {line}" for line in lines), *describe_fitting(examples)]:
        listener.say(line)


def training_sizes(pipe: Any, config: TrainConfig) -> tuple[int, list[Size]]:
    """The resolution, and the sizes to train at.

    Args:
        pipe: the base.
        config: the configuration of the run.

    Raises:
        FeraError: a size in the configuration does not fit the base.
    """
    if sound_of(pipe) is not None:
        return 1, [(1, 1)]  # a sound counts as one pixel
    multiple = size_multiple(pipe)
    data = config.data
    resolution = data.resolution or native_resolution(pipe)
    if resolution % multiple:
        raise FeraError(f"data.resolution is {resolution}, but this base needs a multiple of {multiple}")
    if not data.enable_bucket:
        return resolution, [(resolution, resolution)]
    step = data.bucket_reso_steps or default_step(resolution, multiple)
    if step % multiple or step >= resolution:
        raise FeraError(
            f"data.bucket_reso_steps is {step}, but this base needs a multiple of {multiple} below the resolution, "
            f"{resolution}"
        )
    return resolution, bucket_sizes(resolution, step)


def with_bucket_step(config: TrainConfig, pipe: Any, *, former: bool = False) -> TrainConfig:
    """The configuration with the step of its buckets settled, where it has buckets.

    Args:
        config: the configuration of the run.
        pipe: the base.
        former: as in `default_step`.
    """
    data = config.data
    if not data.enable_bucket or data.bucket_reso_steps is not None:
        return config
    step = default_step(data.resolution or native_resolution(pipe), size_multiple(pipe), former=former)
    return config.model_copy(update={"data": data.model_copy(update={"bucket_reso_steps": step})})


def _report_sizes(examples: list[Example], buckets: list[Size], config: TrainConfig, listener: Listener) -> None:
    """How many pictures are trained at which size, and which of them suffer."""
    if config.data.reads_sounds:
        return
    sizes = assign_sizes(examples, buckets)
    if config.data.enable_bucket or config.data.reads_clips:
        lines = describe_buckets(assign_shapes(examples, buckets), config.train.batch_size)
        listener.say(f"{len(lines)} buckets (width x height):")
        for line in lines:
            listener.say(f"  {line}")
        long = [example.name for example in examples if max(example.size) > MAX_ASPECT * min(example.size)]
        if config.data.enable_bucket and long:
            listener.say(
                f"{len(long)} pictures are longer than 1:{MAX_ASPECT:g} and are cropped to it: {some_of(long)}"
            )
    small = [
        example.name
        for example, size in zip(examples, sizes, strict=True)
        if example.size[0] < size[0] or example.size[1] < size[1]
    ]
    if small:
        target = "their bucket" if config.data.enable_bucket else f"{buckets[0][0]} px"
        listener.say(f"{len(small)} pictures are smaller than {target} and are enlarged: {some_of(small)}")
