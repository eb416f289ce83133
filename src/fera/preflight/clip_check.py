"""What a check of the data says of clips."""

from collections.abc import Sequence

from fera.config import DataConfig
from fera.data.clips.fitting import sift_clips
from fera.data.example import Example
from fera.preflight.report import ClipReport, DataReport


def fit_all(
    report: DataReport, examples: Sequence[Example], counts: Sequence[int], rate: float, data: DataConfig
) -> list[Example]:
    """Settle which frames of clips are trained on; those that do not fit are noted as bad.

    Args:
        report: is added to.
        examples: clips and pictures, as they were found.
        counts: frame counts, from the smallest on.
        rate: frames a second.
        data: says whether bad ones are left out.
    """
    fitted, bad = sift_clips(examples, counts, rate)
    report.bad += bad
    if bad and not (data.skip_bad and fitted):
        report.problems.append(f"{len(bad)} of {len(examples)} clips do not fit")
    return fitted


def clip_report(example: Example) -> ClipReport | None:
    """What becomes of a clip; None of a picture."""
    clip, part = example.clip, example.part
    if clip is None:
        return None
    return ClipReport(
        frames=clip.frames,
        frame_rate=clip.frame_rate,
        seconds=clip.seconds,
        trained_frames=None if part is None else part.frames,
        trained_rate=None if part is None else part.frame_rate,
    )


def describe_clips(clips: Sequence[ClipReport]) -> str:
    """How many clips there are, how long, and at which rates: "3, 17 to 120 frames, 12 to 24 a second, 1 to 5 s"."""
    parts = [str(len(clips)), f"{_range([clip.frames for clip in clips])} frames"]
    if rates := [clip.frame_rate for clip in clips if clip.frame_rate is not None]:
        parts.append(f"{_range(rates)} a second")
    if lengths := [clip.seconds for clip in clips if clip.seconds is not None]:
        parts.append(f"{_range(lengths)} s")
    return ", ".join(parts)


def _range(values: Sequence[float]) -> str:
    least, most = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"
