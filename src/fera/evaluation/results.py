"""What an evaluation finds."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fera.evaluation.settings import EvaluationSettings


@dataclass(frozen=True)
class Sample:
    """One held-out denoising sample.

    Args:
        image: file name of the picture.
        timestep: as the denoiser takes it.
        position: along the noise process, 0 (pure noise) to 1 (clean).
        loss: mean squared error of the prediction.
        bands: the share of `loss` that lies in each frequency band, low to high; they sum to `loss`.
    """

    image: str
    timestep: float
    position: float
    loss: float
    bands: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """One generated picture.

    Args:
        prompt: what was asked for.
        repetition: which picture of this prompt, from 0.
        seed: the seed of its noise.
        file: its name in the output folder; None where none was given.
        style_score: probability that it has the folder's style, by the judge; None where it does not know.
        concept_rank: place of the right picture among the folder's, by the judge; 1 is best; None likewise, or where
            the folder has no picture of this caption.
        concept_rank_other_styles: the same among the pictures of other styles.
        similarity: cosine of its features and those of the folder's pictures of its caption; None without features, or
            where the folder has no picture of this caption.
    """

    prompt: str
    repetition: int
    seed: int
    file: str | None = None
    style_score: float | None = None
    concept_rank: int | None = None
    concept_rank_other_styles: int | None = None
    similarity: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one adapter on one folder; docs/evaluation.md says what each means and how far it can be trusted.

    A metric that could not be had is None, and `reasons` says why.

    Args:
        folder: the data folder.
        settings: the settings of the evaluation.
        samples: the held-out denoising samples, the same for every adapter.
        loss: mean of their losses.
        loss_by_timestep: mean loss in each quarter of the noise process, noise to clean; None where no sample falls.
        loss_by_band: mean loss in each frequency band, low to high; sums to `loss`.
        pictures: the generated pictures, one row each.
        fid: Fréchet distance of the features of generated and real pictures; 0 is best, no upper end.
        kid: kernel distance of the same; 0 is best; unbiased, so that it may fall below 0.
        similarity: mean of the pictures' similarities, -1 to 1.
        drift: how far pictures of `settings.drift_prompts` are from those without the adapter: 1 minus the mean
            cosine of the features of both, 0 to 2; 0 is best.
        sliced_wasserstein: distance of patches at each level of a Laplacian pyramid, by the level's side in pixels;
            0 is best.
        style: the style that the judge finds the folder's real pictures to have.
        style_score: mean probability that a generated picture has the folder's style, 0 to 1.
        style_score_real: the same of the folder's real pictures: what a perfect imitation would reach.
        style_shares: mean probability of every style that the judge knows; they sum to 1.
        concept_score: mean of 1 / rank of the right picture among the folder's real ones, 0 to 1.
        concept_top1: how often it comes first.
        concept_top5: how often it is among the first five.
        concept_score_other_styles: as `concept_score`, among pictures of other styles than the folder's.
        text_score: mean cosine of a picture's and its prompt's CLIP embeddings, times 100.
        diversity_within_prompt: mean distance of the features of pictures of one prompt, 0 to 2.
        diversity_between_prompts: the same for pictures of different prompts.
        seconds_per_step: wall time of a denoising step of one picture, guidance included.
        seconds_per_image: wall time of a picture, decoding included.
        networks: what each network-based metric rests on, by name of the metric.
        reasons: why a metric is None, by its name.
        fera: version of fera.
    """

    folder: str
    settings: EvaluationSettings
    samples: tuple[Sample, ...]
    loss: float
    loss_by_timestep: tuple[float | None, ...]
    loss_by_band: tuple[float, ...]
    pictures: tuple[Picture, ...] = ()
    fid: float | None = None
    kid: float | None = None
    similarity: float | None = None
    drift: float | None = None
    sliced_wasserstein: dict[str, float] | None = None
    style: str | None = None
    style_score: float | None = None
    style_score_real: float | None = None
    style_shares: dict[str, float] | None = None
    concept_score: float | None = None
    concept_top1: float | None = None
    concept_top5: float | None = None
    concept_score_other_styles: float | None = None
    text_score: float | None = None
    diversity_within_prompt: float | None = None
    diversity_between_prompts: float | None = None
    seconds_per_step: float | None = None
    seconds_per_image: float | None = None
    networks: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    fera: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain lists and dicts, ready for JSON."""
        return json.loads(json.dumps(asdict(self)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, whole or not at all."""
        path = Path(path)
        unfinished = path.with_name(path.name + ".tmp")
        unfinished.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
