"""What a chart does to its numbers before it draws them: ticks, smoothing, thinning."""

import math
from collections.abc import Sequence

Point = tuple[float, float | None]


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Round numbers that cover a range.

    Args:
        low: finite.
        high: finite, at least `low`; a range without extent is widened.
        count: about how many.

    Returns:
        Ascending multiples of 1, 2 or 5 times a power of ten; the first is at most `low`, the last at least `high`.
    """
    if high - low <= max(abs(low), abs(high)) * 1e-9 + 1e-250:  # no extent that a chart could show
        pad = abs(high) / 2 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / max(1, count - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Rounded to the step's own digits: 3 * 0.1 is no label.
    digits = max(0, -math.floor(math.log10(step)) + 1)
    return [round(number * step, digits) for number in range(first, last + 1)]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Labels of an axis, all written alike: "0.25", "2,000"; very small and very large ones as "0.5e-3", "1e-3".

    Args:
        ticks: not all of them zero.
    """
    power = math.floor(math.log10(max(map(abs, ticks))) + 1e-9)
    if -2 <= power < 6:
        return [f"{tick:,.10f}".rstrip("0").rstrip(".") for tick in ticks]
    return [f"{tick / 10.0**power:.4g}e{power}" if tick else "0" for tick in ticks]


def smooth(values: Sequence[float | None], span: float) -> list[float | None]:
    r"""Exponential moving average that starts without a bias.

    .. math:: s_i = \sum_{j \le i} a^{i-j} v_j \Big/ \sum_{j \le i} a^{i-j}, \qquad a = 1 - 1 / \text{span}

    Args:
        values: None where there is none; the average holds there.
        span: about how many values an average looks back over, at least 1; 1 changes nothing.

    Returns:
        As many; None before the first value.
    """
    keep = 1 - 1 / span
    total = weight = 0.0
    smoothed: list[float | None] = []
    for value in values:
        if value is not None:
            total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight if weight else None)
    return smoothed


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """Fewer points that look the same: of each stretch the lowest and the highest, so that no spike is lost.

    Args:
        points: in drawing order.
        limit: how many to keep at most, at least 4.

    Returns:
        A subsequence that begins and ends as `points` does; all of them where they are few. A stretch without
        values leaves one gap.
    """
    if len(points) <= limit:
        return list(points)
    stretches = (limit - 2) // 2
    inner = points[1:-1]
    kept = [points[0]]
    for number in range(stretches):
        stretch = inner[number * len(inner) // stretches : (number + 1) * len(inner) // stretches]
        present = [(y, index) for index, (_, y) in enumerate(stretch) if y is not None]
        if present:
            kept += [stretch[index] for index in sorted({min(present)[1], max(present)[1]})]
        elif stretch:
            kept.append(stretch[0])
    return [*kept, points[-1]]
