"""Line charts as SVG: small, crisp, coloured by the page's style sheet.

A chart holds no colour of its own. A line has a class (`expert-1`, `band-2`, `main`), the style sheet gives the class a
colour for light and for dark, and the legend of the page uses the same class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from fera.report.scales import Point, nice_ticks, thin, tick_texts

WIDTH, HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 26, 12, 48
# A line of more points than a screen has columns is no clearer.
_MOST_POINTS = 400
# Points that tell their value to a pointer; more would only make the file larger.
_MOST_HINTS = 240


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        label: its name in the legend.
        points: x and y, in the order of x; a y of None leaves a gap.
        style: class that gives it its colour.
        spread: for each point, how far to shade above and below; None shades nothing.
        is_faint: draw it thin and pale, behind the others, without hints.
        is_marked: draw its points, as where there are few.
    """

    label: str
    points: Sequence[Point]
    style: str = "main"
    spread: Sequence[float] | None = None
    is_faint: bool = False
    is_marked: bool = False

    @property
    def last(self) -> float | None:
        """Its last value."""
        return next((y for _, y in reversed(self.points) if y is not None), None)


def line_chart(
    lines: Sequence[Line],
    *,
    description: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Draw lines over one pair of axes.

    Args:
        lines: at least one point with a value among them; faint ones are drawn first.
        description: what a reader who does not see the chart is told.
        x_label: name of the x axis.
        y_label: name of the y axis.
        y_range: lowest and highest y of the axis; the data's when left out.

    Returns:
        An `<svg>` element, 480 x 270 units, to be laid into HTML as it is. All text in it is escaped.

    Raises:
        ValueError: there is nothing to draw.
    """
    drawn = [(x, y) for line in lines for x, y in line.points if y is not None]
    if not drawn:
        raise ValueError("a chart needs a point with a value")
    xs, ys = [x for x, _ in drawn], [y for _, y in drawn]
    low, high = y_range or (min(ys), max(ys))
    frame = _Frame(nice_ticks(min(xs), max(xs)), nice_ticks(low, high), min(xs), max(xs))
    svg = ElementTree.Element("svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "class": "chart", "role": "img"})
    svg.set("aria-label", description)
    _draw_axes(svg, frame, x_label, y_label)
    ordered = sorted(lines, key=lambda line: not line.is_faint)
    for line in ordered:
        _draw_spread(svg, frame, line)
    for line in ordered:
        _draw_line(svg, frame, line)
    for line in ordered:
        _draw_hints(svg, frame, line, x_label)
    return ElementTree.tostring(svg, encoding="unicode")


class _Frame:
    """From the data's coordinates to the drawing's."""

    def __init__(self, x_ticks: list[float], y_ticks: list[float], x_low: float, x_high: float) -> None:
        # The y axis ends on ticks; along x the data fills the width, unless it has no extent.
        inside = [tick for tick in x_ticks if x_low <= tick <= x_high]
        self.x_ticks = inside if len(inside) > 1 else x_ticks
        self.x_low, self.x_high = (x_low, x_high) if len(inside) > 1 else (x_ticks[0], x_ticks[-1])
        self.y_ticks = y_ticks

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        share = (min(max(value, low), high) - low) / (high - low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)


def _draw_axes(svg: ElementTree.Element, frame: _Frame, x_label: str, y_label: str) -> None:
    axes = ElementTree.SubElement(svg, "g", {"class": "axes", "aria-hidden": "true"})
    bottom = HEIGHT - _BOTTOM
    for tick, label in zip(frame.y_ticks, tick_texts(frame.y_ticks), strict=True):
        y = frame.y(tick)
        _add(axes, "path", {"d": f"M{_LEFT} {y}H{WIDTH - _RIGHT}", "class": "grid"})
        _add(axes, "text", {"x": _LEFT - 7, "y": y + 4, "text-anchor": "end"}, label)
    for tick, label in zip(frame.x_ticks, tick_texts(frame.x_ticks), strict=True):
        x = frame.x(tick)
        _add(axes, "path", {"d": f"M{x} {bottom}v4", "class": "tick"})
        _add(axes, "text", {"x": x, "y": bottom + 18, "text-anchor": "middle"}, label)
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    _add(axes, "text", {"x": middle, "y": HEIGHT - 8, "text-anchor": "middle", "class": "name"}, x_label)
    centre = (_TOP + bottom) / 2
    turned = {
        "x": 0,
        "y": 0,
        "text-anchor": "middle",
        "class": "name",
        "transform": f"translate(11 {centre})rotate(-90)",
    }
    _add(axes, "text", turned, y_label)


def _draw_spread(svg: ElementTree.Element, frame: _Frame, line: Line) -> None:
    if line.spread is None:
        return
    band = [(x, y, spread) for (x, y), spread in zip(line.points, line.spread, strict=True) if y is not None]
    if band:
        above = [f"{frame.x(x)} {frame.y(y + spread)}" for x, y, spread in band]
        below = [f"{frame.x(x)} {frame.y(y - spread)}" for x, y, spread in reversed(band)]
        _add(svg, "path", {"d": "M" + "L".join(above + below) + "Z", "class": f"spread {line.style}"})


def _draw_line(svg: ElementTree.Element, frame: _Frame, line: Line) -> None:
    commands, pen_is_down = [], False
    for x, y in thin(line.points, _MOST_POINTS):
        if y is not None:
            commands.append(f"{'L' if pen_is_down else 'M'}{frame.x(x)} {frame.y(y)}")
        pen_is_down = y is not None
    faint = " faint" if line.is_faint else ""
    _add(svg, "path", {"d": "".join(commands), "class": f"line {line.style}{faint}"})


def _draw_hints(svg: ElementTree.Element, frame: _Frame, line: Line, x_label: str) -> None:
    present = [(x, y) for x, y in line.points if y is not None]
    if line.is_faint or len(present) > _MOST_HINTS:
        return
    quantity = x_label.split(",")[0]
    for x, y in present:
        kind = "mark" if line.is_marked or len(present) == 1 else "hint"
        place = {"cx": frame.x(x), "cy": frame.y(y), "r": 3.5 if kind == "mark" else 6}
        point = _add(svg, "circle", {**place, "class": f"{kind} {line.style}"})
        ElementTree.SubElement(point, "title").text = f"{line.label}, {quantity} {x:,g}: {y:.4g}"


def _add(
    parent: ElementTree.Element, tag: str, attributes: dict[str, object], text: str | None = None
) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, {name: str(value) for name, value in attributes.items()})
    element.text = text
    return element
