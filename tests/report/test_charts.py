"""The report's line charts: where points land, what is escaped, what is left out."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fera.report.charts import HEIGHT, WIDTH, Line, line_chart

RAMP = [(0.0, 0.0), (5.0, 0.5), (10.0, 1.0)]


def chart(*lines, **options):
    names = {"description": "a chart", "x_label": "step", "y_label": "loss"}
    return ElementTree.fromstring(line_chart(lines, **names | options))


def paths(svg, kind):
    return [element for element in svg.iter("path") if kind in element.get("class").split()]


def coordinates(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"([-\d.]+) ([-\d.]+)", path.get("d"))]


def test_a_ramp_is_a_straight_line_over_the_whole_width():
    (line,) = paths(chart(Line("ramp", RAMP)), "line")
    (x0, y0), (x1, y1), (x2, y2) = coordinates(line)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1) and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x0 < x2 == WIDTH - 26 and y0 > y2  # up is less in SVG


def test_a_value_lies_on_the_grid_line_of_its_tick():
    svg = chart(Line("flat", [(0.0, 0.4), (1.0, 0.4)]), y_range=(0, 1))
    (line,) = paths(svg, "line")
    labels = {text.text: float(text.get("y")) for text in svg.iter("text") if text.get("text-anchor") == "end"}
    assert coordinates(line)[0][1] == pytest.approx(labels["0.4"] - 4, abs=0.1)
    assert set(labels) == {"0", "0.2", "0.4", "0.6", "0.8", "1"}


def test_a_gap_lifts_the_pen():
    (line,) = paths(chart(Line("gap", [(0.0, 1.0), (1.0, None), (2.0, 2.0), (3.0, 1.0)])), "line")
    assert line.get("d").count("M") == 2 and line.get("d").count("L") == 1


def test_the_spread_goes_as_far_up_as_down():
    svg = chart(Line("mean", [(0.0, 0.5), (1.0, 0.5)], spread=[0.1, 0.2]), y_range=(0, 1))
    (shade,) = paths(svg, "spread")
    (_, up0), (_, up1), (_, down1), (_, down0) = coordinates(shade)
    (line,) = paths(svg, "line")
    middle = coordinates(line)[0][1]
    assert middle - up0 == pytest.approx(down0 - middle, abs=0.11)
    assert middle - up1 == pytest.approx(2 * (middle - up0), abs=0.21) and down1 > down0


def test_every_point_tells_its_value():
    svg = chart(Line("loss", [(10.0, 0.12345), (20.0, None), (30.0, 2.0)]))
    assert [title.text for title in svg.iter("title")] == ["loss, step 10: 0.1235", "loss, step 30: 2"]


def test_a_single_point_is_marked():
    svg = chart(Line("once", [(7.0, 3.0)]))
    assert [circle.get("class") for circle in svg.iter("circle")] == ["mark main"]


def test_the_faint_line_lies_behind_and_says_nothing():
    svg = chart(Line("smoothed", RAMP), Line("raw", RAMP, is_faint=True))
    assert "faint" in paths(svg, "line")[0].get("class") and "faint" not in paths(svg, "line")[1].get("class")
    assert all(title.text.startswith("smoothed") for title in svg.iter("title"))


def test_a_long_line_stays_small():
    text = line_chart(
        [Line("long", [(float(x), float(x % 97)) for x in range(100_000)])],
        description="long",
        x_label="step",
        y_label="loss",
    )
    assert len(text) < 20_000


def test_nothing_to_draw_is_an_error():
    for lines in ([], [Line("empty", [])], [Line("gaps", [(0.0, None)])]):
        with pytest.raises(ValueError, match="needs a point"):
            chart(*lines)


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"])))
def test_text_cannot_leave_its_place(text):
    svg = chart(Line(text, RAMP), description=text, x_label="step", y_label=text)
    assert svg.get("aria-label") == text
    assert {element.tag for element in svg.iter()} == {"svg", "g", "path", "text", "circle", "title"}


finite = st.floats(-1e6, 1e6, allow_nan=False)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(finite, st.one_of(st.none(), finite), max_size=30), finite)
def test_points_stay_inside(values, value):
    points = sorted({**values, 0.0: value}.items())
    for line in paths(chart(Line("any", points)), "line"):
        for x, y in coordinates(line):
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
