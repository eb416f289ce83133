"""The charts of a report, each with its legend and a caption that says what it shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from fera.report.charts import Line, line_chart
from fera.report.log import NOISE_LINES, Log
from fera.report.scales import Point, smooth
from fera.traces.curves import RoutingCurves
from fera.traces.plot import band_names

# The style sheet has this many colours for experts, and shades for bands; more come round again.
EXPERT_COLOURS = 8
BAND_SHADES = 5


@dataclass(frozen=True)
class Figure:
    """A chart in the page.

    Args:
        title: what it is.
        svg: the chart, safe to lay into HTML.
        caption: what it shows, in words.
        legend: style, label and last value of each line; empty for a single line.
    """

    title: str
    svg: Markup
    caption: str
    legend: list[tuple[str, str, str]] = field(default_factory=list)


def expert_style(number: int) -> str:
    """Class of an expert, counted from 1: one colour in every chart and text."""
    return f"expert-{(number - 1) % EXPERT_COLOURS + 1}"


def band_style(number: int) -> str:
    """Class of a band, counted from 1, low to high frequency."""
    return f"band-{(number - 1) % BAND_SHADES + 1}"


def training_figures(log: Log, held_out: Sequence[tuple[float, float]]) -> list[Figure]:
    """Charts of the optimization: losses, consistency, learning rates, speed; those that the log has numbers for."""
    figures = [
        _held_out_figure(held_out),
        _smoothed_figure(log, "loss", "Training loss", "denoising loss", "main"),
        _smoothed_figure(log, "consistency", "Consistency loss", "consistency loss", "second"),
        _rates_figure(log),
        _speed_figure(log),
    ]
    return [figure for figure in figures if figure is not None]


def gate_figures(log: Log) -> list[Figure]:
    """Charts of the gates over training: use of each expert, and entropy; or of the updates that each expert had."""
    if log.num_experts < 2:
        return _update_figures(log)
    use = [
        Line(f"expert {number}", points, expert_style(number))
        for number, points in enumerate(log.gate_series(), start=1)
    ]
    entropy = Line("gate entropy", log.series("gate_entropy"))
    count = log.num_experts
    last = ", ".join(f"expert {number} {line.last:.2f}" for number, line in enumerate(use, 1) if line.last is not None)
    figures = [
        _figure(
            "Use of the experts",
            use,
            f"Mean gate of each expert over the batches since the line before. Equal use would be {1 / count:.2f}. "
            f"At the end: {last}.",
            "gate",
            (0, 1),
        ),
        _figure(
            "Entropy of the gate",
            [entropy],
            "1 means that all experts are mixed alike for each sample, 0 that one expert alone is used."
            + (f" At the end: {entropy.last:.3f}." if entropy.last is not None else ""),
            "entropy",
            (0, 1),
        ),
    ]
    figures += [_bands_figure(log), *noise_figures(log)]
    return [figure for figure in figures if figure is not None]


def noise_figures(log: Log) -> list[Figure | None]:
    """Gates and band shares along the noise, as training has them lately; None where the log does not tell."""
    lately = f"Means over the last {NOISE_LINES} lines of the log, from pure noise at the left to clean at the right."
    figures = []
    for key, title, y_label, name, style in (
        ("gates_by_noise", "Gates along the noise, lately", "gate", "expert {}", expert_style),
        ("bands_by_noise", "Energies along the noise, lately", "share of the energy", "{} band", band_style),
    ):
        rows = log.by_noise(key)
        width = len(rows[0][1]) if rows else 0
        names = band_names(width) if style is band_style and width else [str(number) for number in range(1, width + 1)]
        # The axis goes as denoising does: how much of the noise is gone.
        lines = [
            Line(
                name.format(label),
                [(1 - level, row[index]) for level, row in rows if index < len(row)],
                style(index + 1),
            )
            for index, label in enumerate(names[:width])
        ]
        figures.append(_figure(title, lines, lately, y_label, (0, 1), "share of the noise that is gone"))
    return figures


def _bands_figure(log: Log) -> Figure | None:
    series = log.band_series()
    names = band_names(len(series)) if series else []
    lines = [
        Line(f"{name} band", points, band_style(number))
        for number, (name, points) in enumerate(zip(names, series, strict=False), start=1)
    ]
    caption = "Mean share of the noisy latents' energy in each band over the batches since the line before."
    return _figure("Energy by band", lines, caption, "share of the energy", (0, 1))


def _update_figures(log: Log) -> list[Figure]:
    experts = log.update_series()
    if len(experts) < 2:
        return []
    lines = [Line(f"expert {number}", points, expert_style(number)) for number, points in enumerate(experts, start=1)]
    figure = _figure(
        "Updates of the experts",
        lines,
        "Share of the adapted layers in which a step updated each expert, over the steps since the line before.",
        "share of the layers",
        (0, 1),
    )
    return [] if figure is None else [figure]


def routing_figures(curves: RoutingCurves) -> list[Figure]:
    """Charts of one adapter along the denoising steps: what the router sees, and what it answers."""
    steps = range(1, len(curves.timesteps) + 1)
    ends = f"denoising step, timesteps {curves.timesteps[0]:.4g} to {curves.timesteps[-1]:.4g}"

    def lines(means: list[list[float]], stds: list[list[float]], labels: list[str], styles: list[str]) -> list[Line]:
        return [
            Line(
                label,
                [(step, row[index]) for step, row in zip(steps, means, strict=True)],
                style,
                spread=[row[index] for row in stds],
            )
            for index, (label, style) in enumerate(zip(labels, styles, strict=True))
        ]

    bands, experts = len(curves.indicator[0]), len(curves.gates[0])
    band_labels = [f"{name} band" for name in band_names(bands)]
    expert_labels = [f"expert {number}" for number in range(1, experts + 1)]
    seen = lines(curves.indicator, curves.indicator_std, band_labels, [band_style(k + 1) for k in range(bands)])
    answered = lines(curves.gates, curves.gates_std, expert_labels, [expert_style(e + 1) for e in range(experts)])
    figures = [
        _figure("What the router sees", seen, f"{_moves(seen)} {_SPREAD}", "share of the energy", (0, 1), ends),
        _figure("What it answers", answered, f"{_moves(answered)} {_SPREAD}", "gate", (0, 1), ends),
    ]
    return [figure for figure in figures if figure is not None]


_SPREAD = "Shaded: one standard deviation between samples."


def _moves(lines: Sequence[Line]) -> str:
    """From where to where each line goes, in words."""
    parts = [f"{line.label} from {line.points[0][1]:.2f} to {line.points[-1][1]:.2f}" for line in lines]
    return f"From the first step to the last: {', '.join(parts)}."


def _held_out_figure(held_out: Sequence[tuple[float, float]]) -> Figure | None:
    if len(held_out) < 2:
        return None
    (_, first), (_, last) = held_out[0], held_out[-1]
    return _figure(
        "Held-out loss",
        [Line("held-out loss", list(held_out), is_marked=True)],
        f"Denoising loss on pictures that were not trained on, always at the same noise and timesteps: {first:.4f} "
        f"at step {held_out[0][0]:g}, {last:.4f} at step {held_out[-1][0]:g}.",
        "loss",
    )


def _smoothed_figure(log: Log, key: str, title: str, y_label: str, style: str) -> Figure | None:
    raw = log.series(key)
    values = [value for _, value in raw]
    span = max(1.0, len(raw) / 25)
    smoothed: list[Point] = [(step, average) for (step, _), average in zip(raw, smooth(values, span), strict=True)]
    lines = [Line("as logged", raw, style, is_faint=True), Line("smoothed", smoothed, style)]
    caption = f"Mean over the steps since the line before, and its moving average over about {span:.0f} lines."
    return _figure(title, lines if span > 1 else [Line(y_label, raw, style)], caption, y_label)


def _rates_figure(log: Log) -> Figure | None:
    experts, router = log.series("lr"), log.series("router_lr")
    lines = [Line("experts" if router else "adapter", experts)]
    if router and [rate for _, rate in router] != [rate for _, rate in experts]:
        lines.append(Line("router", router, "second"))
    return _figure("Learning rate", lines, "Rate of the optimizer at each logged step.", "learning rate")


def _speed_figure(log: Log) -> Figure | None:
    speed = log.series("samples_per_second")
    caption = "Training samples a second, without loading, drawing and held-out losses."
    return _figure("Speed", [Line("samples a second", speed)], caption, "samples / s", _from_zero(speed))


def _from_zero(points: Sequence[Point]) -> tuple[float, float]:
    return 0.0, max((y for _, y in points if y is not None), default=1.0)


def _figure(
    title: str,
    lines: Sequence[Line],
    caption: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    x_label: str = "step",
) -> Figure | None:
    """A figure; None where no line has a value."""
    if all(line.last is None for line in lines):
        return None
    description = f"{title}: {', '.join(line.label for line in lines)}. {caption}"
    svg = line_chart(lines, description=description, x_label=x_label, y_label=y_label, y_range=y_range)
    legend = [(f"{line.style} faint" if line.is_faint else line.style, line.label, _value(line)) for line in lines]
    return Figure(title, Markup(svg), caption, legend if len(lines) > 1 else [])


def _value(line: Line) -> str:
    return "" if line.is_faint or line.last is None else f"{line.last:.3g}"
