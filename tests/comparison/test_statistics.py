"""Paired differences and their intervals: analytic cases, oracles, and coverage where the truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from study_cases import make_result

from fera.comparison.statistics import bootstrap, check_paired, compare, compare_runs, losses, metric, student
from fera.errors import FeraError


def table_of(generator, *, styles, seeds, names, spread, truth=0.0):
    """Tables of differences with known deviations of styles, seeds, names and noise."""
    tables = []
    for _ in range(styles):
        mean = truth + spread[0] * generator.standard_normal()
        by_seed = spread[1] * generator.standard_normal((seeds, 1))
        by_name = spread[2] * generator.standard_normal((1, names))
        tables.append(mean + by_seed + by_name + spread[3] * generator.standard_normal((seeds, names)))
    return tables


@pytest.mark.parametrize("freedom", range(1, 31))
def test_student_is_scipys(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-3)


@pytest.mark.parametrize("freedom", [31, 50, 200, 10000])
def test_student_beyond_its_table_is_close(freedom):
    assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)


def test_equal_differences_leave_no_doubt():
    assert bootstrap([np.full((3, 10), -0.25), np.full((2, 7), -0.25)]) == pytest.approx((-0.25, -0.25, -0.25))


def test_one_level_alone_is_the_t_interval():
    """Many names, one style, one seed: the bootstrap's interval is the textbook's."""
    values = np.random.default_rng(3).standard_normal(12)
    mean, low, high = bootstrap([values[None, :]])
    width = stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(width, rel=0.06)  # 4000 draws of a skewed handful


@given(shift=st.floats(-5, 5), scale=st.floats(0.01, 100), seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_intervals_follow_shift_and_scale(shift, scale, seed):
    tables = table_of(np.random.default_rng(seed), styles=2, seeds=2, names=5, spread=(1, 1, 1, 1))
    here = np.array(bootstrap(tables))
    there = np.array(bootstrap([scale * table + shift for table in tables]))
    np.testing.assert_allclose(there, scale * here + shift, rtol=1e-6, atol=1e-6 * scale)


def test_the_same_seed_gives_the_same_interval_and_another_hardly_another():
    tables = table_of(np.random.default_rng(0), styles=4, seeds=3, names=20, spread=(1, 1, 1, 1))
    assert bootstrap(tables, seed=1) == bootstrap(tables, seed=1)
    np.testing.assert_allclose(bootstrap(tables, seed=1), bootstrap(tables, seed=2), atol=0.2)


CASES = {
    "styles dominate": (6, 3, 30, (1.0, 0.3, 0.5, 0.5)),
    "seeds dominate": (6, 3, 30, (0.1, 1.0, 0.5, 0.5)),
    "one style, names": (1, 3, 58, (0.0, 0.1, 1.0, 0.5)),
    "one style, seeds": (1, 3, 58, (0.0, 1.0, 1.0, 0.5)),
    "two styles, two seeds": (2, 2, 30, (0.5, 0.5, 0.5, 0.5)),
}


@pytest.mark.parametrize(
    "case", [case if case == "one style, names" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_coverage_where_the_truth_is_known(case, monkeypatch):
    """At least 93 of 100 intervals of 95 % hold the truth; 250 trials know this to 1.4 points."""
    monkeypatch.setattr("fera.comparison.statistics.DRAWS", 600)
    styles, seeds, names, spread = CASES[case]
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(250):
        tables = table_of(generator, styles=styles, seeds=seeds, names=names, spread=spread, truth=0.7)
        _, low, high = bootstrap(tables, seed=int(generator.integers(2**31)))
        held += low <= 0.7 <= high
    assert held / 250 >= 0.93 - 0.014


def test_a_real_difference_is_found():
    generator = np.random.default_rng(5)
    tables = table_of(generator, styles=6, seeds=3, names=58, spread=(0.2, 0.2, 0.5, 0.5), truth=-1.0)
    assert bootstrap(tables)[2] < 0


def results_with(differences, seeds=(0, 1), styles=("s", "t")):
    """A reference of loss 1 everywhere and a method that differs by so much at each sample."""
    return [
        make_result(method, style, seed, [1.0 + (d if method == "new" else 0.0) for d in differences])
        for style in styles
        for seed in seeds
        for method in ("ref", "new")
    ]


def test_pairs_are_subtracted_and_averaged_by_name():
    """Two samples of one picture, one of another: pictures weigh alike."""
    results = results_with([-0.1, -0.3, 0.1])
    for result in results:
        result.samples.images[:] = ["a", "a", "b"]
    found = compare(results, losses(results, "new"), losses(results, "ref"), ["s", "t"])
    assert found.mean == pytest.approx((-0.2 + 0.1) / 2)
    assert (found.runs, found.seeds, found.wins) == (4, 2, 4)


def test_quarters_and_bands_select():
    results = results_with([-0.4, 0.0, 0.0, 0.8])
    for result in results:
        result.samples.positions[:] = [0.1, 0.3, 0.6, 0.9]

    def mean(**which):
        return compare(results, losses(results, "new", **which), losses(results, "ref", **which), ["s"]).mean

    assert [mean(quarter=quarter) for quarter in range(4)] == pytest.approx([-0.4, 0.0, 0.0, 0.8])
    assert mean(band=0) + mean(band=1) == pytest.approx(mean())


def test_numbers_of_whole_runs_pair_by_style_and_seed():
    """Styles lie far apart, methods do not: only pairs show it."""
    shifts = {0: 0.1, 1: 0.3, 2: 0.2}
    results = [
        replace(one, metrics={"fid": 5.0 * (one.style == "s") + shifts[one.seed] * (one.method == "new")})
        for one in results_with([0.0, 0.0], seeds=(0, 1, 2))
    ]
    found = compare_runs(metric(results, "new", "fid"), metric(results, "ref", "fid"), ["s", "t"])
    assert found.mean == pytest.approx(0.2) and (found.runs, found.seeds, found.wins) == (6, 3, 0)
    assert -0.2 < found.low < 0.2 < found.high < 0.6  # styles agree, seeds do not
    levels = [replace(one, metrics={"swd": {"0": 1.0, "1": 3.0}}) for one in results[:2]]
    assert metric(levels, "new", "swd") == {("s", 0): np.array([2.0])}
    assert metric(levels, "new", "fid") == {}


def test_only_runs_that_both_have_count():
    results = [run for run in results_with([-0.1, 0.2]) if (run.method, run.seed) != ("ref", 1)]
    found = compare(results, losses(results, "new"), losses(results, "ref"), ["s", "t"])
    assert (found.runs, found.seeds) == (2, 1) and not found.is_clear
    assert compare(results, losses(results, "new"), {}, ["s"]) is None


def test_other_samples_are_refused():
    results = results_with([0.0, 0.0])
    results[1].samples.positions[0] += 0.1
    with pytest.raises(FeraError, match="new · s · seed 0 was evaluated on other samples than ref · s · seed 0"):
        check_paired(results)
