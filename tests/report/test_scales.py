"""Ticks, smoothing and thinning of the report's charts."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fera.report.scales import nice_ticks, smooth, thin, tick_texts

finite = st.floats(-1e9, 1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.83, 1.5, [0.8, 1, 1.2, 1.4, 1.6]),
        (0, 400, [0, 100, 200, 300, 400]),
        (-3, 3, [-4, -2, 0, 2, 4]),
        (0, 0.0021, [0, 0.0005, 0.001, 0.0015, 0.002, 0.0025]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high) == ticks


@settings(deadline=None, max_examples=50)
@given(finite, finite, st.integers(2, 10))
def test_ticks_cover_the_range_evenly_and_are_few(a, b, count):
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(low, high, count)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= low + step * 1e-6 and ticks[-1] >= high - step * 1e-6
    assert 2 <= len(ticks) <= count + 3
    for left, right in zip(ticks, ticks[1:], strict=False):
        assert right - left == pytest.approx(step, rel=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, -7.5, 1e-12, 3e8])
def test_a_range_without_extent_is_widened(value):
    ticks = nice_ticks(value, value)
    assert ticks[0] < value < ticks[-1] or (ticks[0] <= value <= ticks[-1] and len(ticks) > 2)


@pytest.mark.parametrize(
    ("ticks", "texts"),
    [
        ([0, 0.25, 0.5], ["0", "0.25", "0.5"]),
        ([0, 1000, 2000], ["0", "1,000", "2,000"]),
        ([-0.5, 0, 0.5], ["-0.5", "0", "0.5"]),
        ([0, 0.0005, 0.001, 0.0015], ["0", "0.5e-3", "1e-3", "1.5e-3"]),
        ([0, 5e-5, 1e-4], ["0", "0.5e-4", "1e-4"]),
        ([0, 2e6, 4e6], ["0", "2e6", "4e6"]),
    ],
)
def test_labels_of_an_axis_are_written_alike(ticks, texts):
    assert tick_texts(ticks) == texts


@settings(deadline=None, max_examples=50)
@given(finite, finite)
def test_labels_tell_ticks_apart_and_say_their_values(a, b):
    ticks = nice_ticks(min(a, b), max(a, b))
    texts = tick_texts(ticks)
    assert len(set(texts)) == len(ticks) or max(map(abs, ticks)) > 1000 * (ticks[1] - ticks[0])
    for tick, text in zip(ticks, texts, strict=True):
        assert float(text.replace(",", "")) == pytest.approx(tick, rel=1e-3, abs=1e-9)


def test_smoothing_is_the_weighted_mean_of_its_definition():
    values, span = [3.0, 1.0, 4.0, 1.0, 5.0], 3.0
    keep = 1 - 1 / span
    for index, average in enumerate(smooth(values, span)):
        weights = [keep ** (index - j) for j in range(index + 1)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert average == pytest.approx(expected, abs=1e-12)


def test_smoothing_holds_where_there_is_no_value():
    assert smooth([None, 2.0, None], 4.0) == [None, 2.0, pytest.approx(2.0)]
    assert smooth([1.0, 9.0, 2.0], 1.0) == [1.0, 9.0, 2.0]


@settings(deadline=None, max_examples=50)
@given(st.lists(finite, min_size=1, max_size=50), st.floats(1, 20))
def test_an_average_stays_between_the_least_and_the_most(values, span):
    slack = 1e-9 * max(map(abs, values)) + 1e-12
    for index, average in enumerate(smooth(values, span)):
        seen = values[: index + 1]
        assert min(seen) - slack <= average <= max(seen) + slack


points = st.lists(st.one_of(st.none(), finite), max_size=300).map(lambda ys: list(enumerate(ys)))


@settings(deadline=None, max_examples=50)
@given(points, st.integers(4, 60))
def test_thinning_keeps_ends_order_and_extremes(series, limit):
    kept = thin(series, limit)
    assert len(kept) <= max(limit, 0) or kept == series
    assert kept == sorted(kept, key=lambda point: point[0]) and set(kept) <= set(series)
    assert kept[:1] == series[:1] and kept[-1:] == series[-1:]
    values = [y for _, y in series if y is not None]
    if values:
        left = [y for _, y in kept if y is not None]
        assert (min(left), max(left)) == (min(values), max(values))


def test_a_spike_survives_thinning():
    series = [(float(step), 1.0) for step in range(100_000)]
    series[54_321] = (54_321.0, 99.0)
    kept = thin(series, 200)
    assert (54_321.0, 99.0) in kept and len(kept) <= 200
    assert all(math.isfinite(y) for _, y in kept)
