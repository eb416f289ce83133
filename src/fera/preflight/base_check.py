"""What only the base can say of the data: its sizes, its text encoder's limit, what a run will cost."""

from collections.abc import Sequence

import torch
from torch import nn

from fera.config import TrainConfig
from fera.data.buckets import Size, assign_shapes
from fera.data.caption_checks import check_cleaning, text_limits
from fera.data.clips.fitting import clip_settings
from fera.data.example import Example
from fera.data.pair_checks import with_sources
from fera.data.sounds.fitting import fit_sounds, sound_lengths
from fera.models.families import family_of, trained_denoiser
from fera.models.noise import noise_process
from fera.pipelines.base import load_base
from fera.pipelines.memory import Held, held, ways_to_hold
from fera.pipelines.quantization import quantize
from fera.pipelines.quantization_kinds import check_quantization
from fera.preflight.clip_check import fit_all
from fera.preflight.costs import estimate
from fera.preflight.report import DataReport, noting
from fera.training.start.opening import (
    check_class_pictures,
    check_drawing,
    given_entries,
    part_dtypes,
    training_sizes,
)
from fera.training.step.losses import check_loss_weights
from fera.training.trained.text import check_text_training


def look_with_base(
    report: DataReport, config: TrainConfig, training: Sequence[Example], held_out: Sequence[Example]
) -> tuple[list[Size], list[Example], list[Example]]:
    """Load the base, and note in the report what it says of captions and costs.

    Args:
        report: is added to.
        config: the configuration of the run.
        training: examples to train on.
        held_out: examples to measure on.

    Returns:
        The sizes that the base is trained at; training and held-out examples, the frames of clips settled.

    Raises:
        FeraError: the base cannot be loaded or trained, or the data do not fit it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_quantization(config.quantization, device)
    pipe = load_base(config.base, revision=config.revision, variant=config.variant, dtype=part_dtypes(config))
    family = family_of(pipe)
    with noting(report):
        check_class_pictures(family, config)
    with noting(report):
        check_loss_weights(noise_process(pipe.scheduler, config.train.prediction_type), config.train)
    if family.sound is not None or config.data.reads_sounds:
        lengths = sound_lengths(config.data, family.sound, type(pipe).__name__)
        assert family.sound is not None
        training, held_out = (fit_sounds(some, lengths, family.sound) for some in (training, held_out))
    if config.data.reads_clips:
        counts, rate = clip_settings(config.data, family.video, type(pipe).__name__)
        training, held_out = (fit_all(report, each, counts, rate, config.data) for each in (training, held_out))
    training, held_out = (
        with_sources(some, family, type(pipe).__name__, last_frame=config.data.last_frame)
        for some in (training, held_out)
    )
    with noting(report):
        check_drawing(pipe, config.validation, given_entries(family, held_out))
    _, buckets = training_sizes(pipe, config)
    examples = [*training, *held_out]
    if examples:
        denoiser = trained_denoiser(pipe, config.adapter.component)[1]
        ways = _ways(denoiser, config)
        quantize(denoiser, config.quantization, device)
        report.text_limits = text_limits(pipe, family, examples)
        with noting(report):
            report.cleaned = check_cleaning(pipe, examples, config.data.trigger_word)
        check_text_training(pipe, family, config, list(training))
        report.estimates = estimate(pipe, config, examples, assign_shapes(examples, buckets), device, ways)
    return buckets, list(training), list(held_out)


def _ways(denoiser: nn.Module, config: TrainConfig) -> list[Held]:
    """How a denoiser could be held, the run's own way first, and then those that take less of the device."""
    settings, dtype = config.train, part_dtypes(config)["default"]
    own = held(denoiser, dtype, config.quantization, settings.offload, settings.blocks_on_device)
    others = [] if config.adapter.full else ways_to_hold(denoiser, dtype, settings.blocks_on_device)
    return [own, *(way for way in others if way.device_bytes < own.device_bytes)]
