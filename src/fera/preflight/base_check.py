"""What only the base can say of the data: its sizes, its text encoder's limit, what a run will cost."""

from collections.abc import Sequence
from typing import Any

import torch

from fera.config import TrainConfig
from fera.data.buckets import Size, assign_sizes
from fera.data.example import Example
from fera.models.components import denoisers
from fera.models.families import family_of
from fera.pipelines.base import load_base
from fera.pipelines.quantization import quantize
from fera.preflight.costs import estimate
from fera.preflight.report import DataReport
from fera.training.start.opening import training_sizes
from fera.training.trained.text import check_text_training


def look_with_base(
    report: DataReport, config: TrainConfig, training: Sequence[Example], held_out: Sequence[Example]
) -> list[Size]:
    """Load the base, and note in the report what it says of captions and costs.

    Args:
        report: is added to.
        config: of the run.
        training: examples to train on.
        held_out: examples to measure on.

    Returns:
        The sizes that the base is trained at.

    Raises:
        FeraError: the base cannot be loaded or trained, or the data do not fit it.
    """
    pipe = load_base(config.base, revision=config.revision, variant=config.variant)
    family = family_of(pipe)
    _, buckets = training_sizes(pipe, config)
    examples = [*training, *held_out]
    if examples:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        quantize(next(iter(denoisers(pipe).values())), config.quantization, device)
        _look_at_captions(report, examples, pipe.tokenizer)
        check_text_training(pipe, family, config, list(training))
        report.estimates = estimate(pipe, config, examples, assign_sizes(examples, buckets), device)
    return buckets


def _look_at_captions(report: DataReport, examples: Sequence[Example], tokenizer: Any) -> None:
    report.token_limit = limit = tokenizer.model_max_length
    tokens = tokenizer([example.caption for example in examples], truncation=False).input_ids
    report.long_captions = [e.name for e, ids in zip(examples, tokens, strict=True) if len(ids) > limit]
