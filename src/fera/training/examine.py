"""What `fera data check` finds: how a folder would be trained on, and whether training would refuse it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fera.bases import load_base
from fera.errors import FeraError
from fera.pipelines import denoisers
from fera.quantization import quantize
from fera.training.buckets import MAX_ASPECT, Size, assign_sizes, bucket_sizes, describe_buckets, nearest_bucket
from fera.training.class_images import class_settings, count_class_images
from fera.training.config import TrainConfig
from fera.training.data import crop_offset, hold_out, sift_images
from fera.training.estimates import Estimates, estimate
from fera.training.examples import Example, repeat, some_of
from fera.training.families import family_of
from fera.training.images import crop_box
from fera.training.layouts import check_captions, find_examples, scan_training
from fera.training.masks import add_masks
from fera.training.sources import training_sizes
from fera.training.text import check_text_training


@dataclass(frozen=True)
class PictureReport:
    """What becomes of one picture.

    Args:
        name: of the picture.
        size: its width and height, upright.
        repeats: how often an epoch sees it.
        bucket: width and height that it is brought to; None where no size is known.
        crop: left, top, width and height of the part of it that is seen; None where no size is known.
        caption: as trained on.
        mask: file of its mask; None where all of it counts.
        held_out: whether only the held-out loss sees it.
    """

    name: str
    size: Size
    repeats: int
    bucket: Size | None
    crop: tuple[float, float, float, float] | None
    caption: str
    mask: str | None
    held_out: bool


@dataclass
class DataReport:
    """How a folder would be trained on.

    Args:
        folder: of the training pictures, or the name of the dataset.
        layout: "flat", "imagefolder", "repeats", "parquet" or "dataset".
        pictures: usable ones, held out or not.
        rows: training pictures in an epoch, repeats counted.
        held_out: pictures held out.
        class_pictures: how many there are.
        class_pictures_to_draw: how many the base has to draw.
        smallest: width and height of the picture with the fewest pixels.
        largest: of that with the most.
        sizes: width and height that each picture is brought to, by its name; empty where no size is known.
        listing: each usable picture, those to train on first.
        buckets: a line about each size.
        enlarged: pictures smaller than their size.
        cropped: pictures longer than any bucket.
        samples: names and captions of some pictures, as trained on.
        duplicates: names of pictures whose files are equal.
        leaked: pictures that are trained on and held out.
        token_limit: of the text encoder; None where no base is known.
        long_captions: pictures whose captions exceed it.
        bad: a line about each picture that cannot be used.
        notes: a line about whatever is left alone.
        problems: why training would refuse.
        estimates: what a run will cost; None where no base is known.
    """

    folder: str
    layout: str = "unknown"
    pictures: int = 0
    rows: int = 0
    held_out: int = 0
    class_pictures: int = 0
    class_pictures_to_draw: int = 0
    smallest: Size | None = None
    largest: Size | None = None
    sizes: dict[str, Size] = field(default_factory=dict)
    listing: list[PictureReport] = field(default_factory=list)
    buckets: list[str] = field(default_factory=list)
    enlarged: list[str] = field(default_factory=list)
    cropped: list[str] = field(default_factory=list)
    samples: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    token_limit: int | None = None
    long_captions: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    estimates: Estimates | None = None


def examine(config: TrainConfig, device: torch.device, *, with_base: bool) -> DataReport:
    """Look at a run's data as training would, without stopping at the first problem.

    Args:
        config: of the run.
        device: where to time.
        with_base: load the base, for its sizes, its text encoder's limit, and estimates.

    Returns:
        The report; nothing was written.
    """
    report = DataReport(str(config.data.source))
    training, held_out = _look_at_pictures(report, config)
    _look_at_class(report, config)
    examples = training + held_out
    buckets: list[Size] = []
    if with_base:
        with _noting(report):
            pipe = load_base(config.base, revision=config.revision, variant=config.variant)
            family_of(pipe)
            _, buckets = training_sizes(pipe, config)
            _look_at_sizes(report, training, buckets, config)
            if examples:
                quantize(next(iter(denoisers(pipe).values())), config.quantization, device)
                _look_at_captions(report, examples, pipe.tokenizer)
                check_text_training(pipe, family_of(pipe), config, training)
                report.estimates = estimate(pipe, config, examples, assign_sizes(examples, buckets), device)
    elif config.data.resolution is not None:
        side = config.data.resolution
        step = config.data.bucket_reso_steps or max(1, side // 8 // 8) * 8
        buckets = bucket_sizes(side, step) if config.data.enable_bucket else [(side, side)]
        _look_at_sizes(report, training, buckets, config)
    report.listing = [
        *(_picture_report(example, buckets, config, held_out=False) for example in training),
        *(_picture_report(example, buckets, config, held_out=True) for example in held_out),
    ]
    return report


def _picture_report(example: Example, buckets: Sequence[Size], config: TrainConfig, *, held_out: bool) -> PictureReport:
    bucket = nearest_bucket(example.size, buckets) if buckets else None
    offset = crop_offset(example, center_crop=config.data.center_crop, seed=config.seed)
    return PictureReport(
        name=example.name,
        size=example.size,
        repeats=example.repeats,
        bucket=bucket,
        crop=None if bucket is None else crop_box(example.size, bucket, offset),
        caption=example.caption,
        mask=None if example.mask is None else str(example.mask),
        held_out=held_out,
    )


class _noting:
    """Notes a `FeraError` of the block as a problem and goes on after it."""

    def __init__(self, report: DataReport) -> None:
        self._problems = report.problems

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> bool:
        if isinstance(error, FeraError):
            self._problems.append(str(error))
            return True
        return False


def _look_at_pictures(report: DataReport, config: TrainConfig) -> tuple[list[Example], list[Example]]:
    data = config.data
    with _noting(report):
        found = scan_training(data)
        report.layout, report.notes = found.layout, found.notes
        with _noting(report):
            check_captions(found, data.source, data)
        examples = found.examples
        with _noting(report):
            examples = add_masks(examples, data)
        examples = _usable(report, examples, data.source, skip_bad=data.skip_bad)
        _describe(report, examples)
        held_out: list[Example] = []
        with _noting(report):
            if data.validation_data_dir is not None:
                others = find_examples(data.validation_data_dir, data)
                held_out = _usable(report, others, data.validation_data_dir, skip_bad=data.skip_bad)
            else:
                examples, held_out = hold_out(examples, data.validation_fraction)
        trained = {example.digest for example in examples}
        report.leaked = [example.name for example in held_out if example.digest in trained]
        report.rows, report.held_out = len(repeat(examples)), len(held_out)
        return examples, held_out
    return [], []


def _usable(report: DataReport, examples: Sequence[Example], source: Path | str, *, skip_bad: bool) -> list[Example]:
    good, bad = sift_images(examples)
    report.bad += bad
    if bad and not (skip_bad and good):
        report.problems.append(f"{len(bad)} of {len(examples)} pictures in {source} cannot be used")
    return good


def _describe(report: DataReport, examples: Sequence[Example]) -> None:
    report.pictures = len(examples)
    if examples:
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
        with _noting(report):
            settings = class_settings(config.data)
            _usable(report, find_examples(folder, settings), folder, skip_bad=settings.skip_bad)
    elif not report.class_pictures_to_draw:
        report.problems.append(f"no class pictures in {folder}; add some, or set data.num_class_images")


def _look_at_sizes(
    report: DataReport, examples: Sequence[Example], buckets: Sequence[Size], config: TrainConfig
) -> None:
    sizes = assign_sizes(examples, buckets)
    report.sizes = {example.name: size for example, size in zip(examples, sizes, strict=True)}
    rows = Counter(dict.fromkeys(sizes, 0))
    for example, size in zip(examples, sizes, strict=True):
        rows[size] += example.repeats
    report.buckets = describe_buckets(list(rows.elements()), config.train.batch_size)
    pairs = list(zip(examples, sizes, strict=True))
    report.enlarged = [e.name for e, size in pairs if e.size[0] < size[0] or e.size[1] < size[1]]
    if config.data.enable_bucket:
        report.cropped = [e.name for e in examples if max(e.size) > MAX_ASPECT * min(e.size)]


def _look_at_captions(report: DataReport, examples: Sequence[Example], tokenizer: Any) -> None:
    report.token_limit = limit = tokenizer.model_max_length
    tokens = tokenizer([example.caption for example in examples], truncation=False).input_ids
    report.long_captions = [e.name for e, ids in zip(examples, tokens, strict=True) if len(ids) > limit]


def summary(names: Sequence[str]) -> str:
    """Some of the names in brackets, or nothing."""
    return f" ({some_of(names)})" if names else ""
