"""What `fera data check` finds: how a folder would be trained on, and whether training would refuse it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fera.config import DataConfig, TrainConfig
from fera.data.buckets import (
    MAX_ASPECT,
    Size,
    assign_shapes,
    assign_sizes,
    bucket_sizes,
    default_step,
    describe_buckets,
    nearest_bucket,
)
from fera.data.checking import crop_offset, hold_out, sift_images
from fera.data.class_pictures import class_settings, count_class_images
from fera.data.colours import describe_colours
from fera.data.example import Example, repeat, some_of
from fera.data.images import crop_box
from fera.data.index import user_index
from fera.data.masks import add_masks, describe_shared_masks
from fera.data.pairs import add_sources, describe_sources
from fera.data.sounds.fitting import describe_fitting, describe_lengths
from fera.data.sources import check_captions, find, scan_training
from fera.preflight.clip_check import clip_report, fit_all
from fera.preflight.report import DataReport, PictureReport, noting
from fera.preflight.sound_check import sound_report


def examine(config: TrainConfig, *, with_base: bool) -> DataReport:
    """Look at a run's data as training would, without stopping at the first problem.

    Args:
        config: the configuration of the run.
        with_base: load the base, for its sizes, its text encoder's limit, and estimates.

    Returns:
        The report; nothing was written but the index of pictures.
    """
    report = DataReport(str(config.data.source))
    training, held_out = _look_at_pictures(report, config)
    _look_at_class(report, config)
    buckets: list[Size] = []
    if with_base:
        # PyTorch and diffusers take seconds to import, and a check without a base does without them.
        from fera.preflight.base_check import look_with_base

        with noting(report):
            buckets, training, held_out = look_with_base(report, config, training, held_out)
            _look_at_sizes(report, training, buckets, config)
    if not with_base and config.data.reads_clips and config.data.frame_rate is not None:
        counts = sorted(config.data.num_frames)
        training, held_out = (
            fit_all(report, each, counts, config.data.frame_rate, config.data) for each in (training, held_out)
        )
    if not with_base and config.data.resolution is not None:
        side = config.data.resolution
        step = config.data.bucket_reso_steps or default_step(side, 8)
        buckets = bucket_sizes(side, step) if config.data.enable_bucket else [(side, side)]
        _look_at_sizes(report, training, buckets, config)
    if config.data.reads_clips:
        report.rows, report.held_out = len(repeat(training)), len(held_out)
    report.listing = [
        *(_picture_report(example, buckets, config, held_out=False) for example in training),
        *(_picture_report(example, buckets, config, held_out=True) for example in held_out),
    ]
    return report


def _picture_report(example: Example, buckets: Sequence[Size], config: TrainConfig, *, held_out: bool) -> PictureReport:
    bucket = nearest_bucket(example.size, buckets) if buckets and example.sound is None else None
    offset = crop_offset(example, center_crop=config.data.center_crop, seed=config.seed)
    return PictureReport(
        name=example.name,
        size=example.size,
        repeats=example.repeats,
        bucket=bucket,
        crop=None if bucket is None else crop_box(example.size, bucket, offset),
        caption=example.caption,
        mask=None if example.mask is None else str(example.mask),
        sources=[str(source.path) for source in example.sources],
        held_out=held_out,
        colours=example.colours,
        clip=clip_report(example),
        sound=sound_report(example),
    )


def _look_at_pictures(report: DataReport, config: TrainConfig) -> tuple[list[Example], list[Example]]:
    data = config.data
    with noting(report):
        found = scan_training(data)
        report.layout, report.notes = found.layout, found.notes
        with noting(report):
            check_captions(found, data.source, data)
        examples = found.examples
        with noting(report):
            examples = add_masks(add_sources(examples, data), data)
            report.notes += describe_shared_masks(examples)
        examples = _usable(report, examples, data.source, data)
        report.notes += describe_sources(examples)
        _describe(report, examples)
        held_out: list[Example] = []
        with noting(report):
            if data.validation_data_dir is not None:
                others = add_sources(_found(report, data.validation_data_dir, data), data)
                held_out = _usable(report, others, data.validation_data_dir, data)
            else:
                examples, held_out = hold_out(examples, data.validation_fraction, data.held_out_stage)
        trained = {example.digest for example in examples}
        report.leaked = [example.name for example in held_out if example.digest in trained]
        report.rows, report.held_out = len(repeat(examples)), len(held_out)
        return examples, held_out
    return [], []


def _found(report: DataReport, folder: Path, data: DataConfig) -> list[Example]:
    """Pictures of another folder than that of the training pictures."""
    found = find(folder, data)
    report.notes += [f"{folder}: {note}" for note in found.notes]
    return found.examples


def _usable(report: DataReport, examples: Sequence[Example], source: Path | str, data: DataConfig) -> list[Example]:
    good, bad = sift_images(examples, user_index(), clips=data.reads_clips, sounds=data.reads_sounds)
    report.bad += bad
    report.colours += describe_colours(good)
    if bad and not (data.skip_bad and good):
        report.problems.append(f"{len(bad)} of {len(examples)} {data.things} in {source} cannot be used")
    return good


def _describe(report: DataReport, examples: Sequence[Example]) -> None:
    report.pictures = len(examples)
    if examples and examples[0].sound is None:
        by_area = sorted((example.size for example in examples), key=lambda size: size[0] * size[1])
        report.smallest, report.largest = by_area[0], by_area[-1]
    step = max(1, len(examples) // 5)
    report.samples = [(example.name, example.caption) for example in examples[::step][:5]]
    same: dict[str, list[str]] = {}
    for example in examples:
        same.setdefault(example.digest, []).append(example.name)
    report.duplicates = [names for names in same.values() if len(names) > 1]


def _look_at_class(report: DataReport, config: TrainConfig) -> None:
    folder = config.data.class_data_dir
    if folder is None:
        return
    report.class_pictures = count_class_images(folder)
    report.class_pictures_to_draw = max(0, config.data.num_class_images - report.class_pictures)
    if report.class_pictures:
        with noting(report):
            settings = class_settings(config.data)
            _usable(report, _found(report, folder, settings), folder, settings)
    elif not report.class_pictures_to_draw:
        report.problems.append(f"no class pictures in {folder}; add some, or set data.num_class_images")


def _look_at_sizes(
    report: DataReport, examples: Sequence[Example], buckets: Sequence[Size], config: TrainConfig
) -> None:
    if config.data.reads_sounds:
        report.buckets = describe_lengths(repeat(examples), config.train.batch_size)
        report.notes += describe_fitting(examples)
        return
    sizes, shapes = assign_sizes(examples, buckets), assign_shapes(examples, buckets)
    report.sizes = {example.name: size for example, size in zip(examples, sizes, strict=True)}
    rows = Counter(dict.fromkeys(shapes, 0))
    for example, shape in zip(examples, shapes, strict=True):
        rows[shape] += example.repeats
    report.buckets = describe_buckets(list(rows.elements()), config.train.batch_size)
    pairs = list(zip(examples, sizes, strict=True))
    report.enlarged = [e.name for e, size in pairs if e.size[0] < size[0] or e.size[1] < size[1]]
    if config.data.enable_bucket:
        report.cropped = [e.name for e in examples if max(e.size) > MAX_ASPECT * min(e.size)]


def summary(names: Sequence[str]) -> str:
    """Some of the names in brackets, or nothing."""
    return f" ({some_of(names)})" if names else ""
