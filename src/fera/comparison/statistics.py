r"""Paired differences between methods, and how sure they are.

Every method is evaluated on the same pictures at the same noise and timesteps, so a method's loss is compared with
the reference's sample by sample, then averaged for each name (picture). What remains is a table

.. math:: d_{sri} = m + a_s + b_{sr} + c_{si} + e_{sri}

of styles s, training seeds r and names i: styles, seeds and names are draws from what one wants to speak about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from fera.comparison.results import Result
from fera.errors import FeraError

Array = NDArray[np.float64]

DRAWS = 4000
_Z = 1.959964
# 97.5 % points of Student's t for 1 to 30 degrees of freedom; beyond, the normal's is within 4 %.
_T = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


@dataclass(frozen=True)
class Interval:
    """A mean difference; below 0 the method is better than the reference.

    Args:
        mean: over styles, seeds and names.
        low: lower end of the 95 % interval.
        high: upper end.
        runs: pairs of runs behind it.
        seeds: training seeds behind it; with one, the interval knows nothing of how training runs vary.
        wins: pairs of runs in which the method's mean was the lower one.
    """

    mean: float
    low: float
    high: float
    runs: int
    seeds: int
    wins: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out and rests on several seeds."""
        return self.seeds > 1 and (self.high < 0 or self.low > 0)


def bootstrap(tables: Sequence[Array], seed: int = 0) -> tuple[float, float, float]:
    r"""Mean of tables of differences and its 95 % interval, by a hierarchical bootstrap.

    Styles are drawn with replacement, and within each style its seeds and its names. Percentiles of so few units are
    too narrow, so deviations at each level are widened by :math:`\sqrt{n/(n-1)}\, t_{n-1} / z`. With one unit a level
    varies nothing, and the interval speaks of that unit alone.

    Args:
        tables: for each style an array (seeds, names).
        seed: the seed of the draws.

    Returns:
        Mean, lower and upper end.

    Source:
        Hesterberg 2015, "What Teachers Should Know About the Bootstrap", arXiv 1411.5279 (expanded percentiles);
        Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111 (crossed seeds and names).
    """
    generator = np.random.default_rng(seed)
    means = np.array([table.mean() for table in tables])
    grand = means.mean()
    styles = len(tables)
    within = np.stack([_within(table, styles, generator) for table in tables], axis=1)  # (draws, styles)
    chosen = generator.integers(styles, size=(DRAWS, styles))
    between = _widening(styles, styles - 1) * (means[chosen].mean(axis=1) - grand)
    values = grand + between + np.take_along_axis(within, chosen, axis=1).mean(axis=1)
    low, high = np.percentile(values, (2.5, 97.5))
    return float(grand), float(low), float(high)


def _within(table: Array, styles: int, generator: np.random.Generator) -> Array:
    """Draws of a style's mean about itself, from its seeds and names, shape (draws,)."""
    seeds, names = table.shape
    mean = table.mean()
    by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds
    by_name = generator.multinomial(names, np.full(names, 1 / names), size=DRAWS) / names
    from_seeds = by_seed @ (table.mean(axis=1) - mean)
    from_names = by_name @ (table.mean(axis=0) - mean)
    # The styles together tell how much seeds vary; so do they for names.
    return _widening(seeds, styles * (seeds - 1)) * from_seeds + _widening(names, styles * (names - 1)) * from_names


def _widening(count: int, freedom: int) -> float:
    if count < 2:
        return 1.0
    return float(np.sqrt(count / (count - 1))) * student(freedom) / _Z


def student(freedom: int) -> float:
    """97.5 % point of Student's t."""
    return _T[freedom - 1] if freedom <= len(_T) else _Z + (_T[-1] - _Z) * len(_T) / freedom


Quantity = Mapping[tuple[str, int], Array]  # (style, seed) to one number a sample


def losses(results: Sequence[Result], method: str, quarter: int | None = None, band: int | None = None) -> Quantity:
    """A method's losses by style and seed, one a sample.

    Args:
        results: the results of the study.
        method: which.
        quarter: samples of this quarter of the noise process alone, 0 (noise) to 3 (clean).
        band: the loss of this frequency band alone.
    """
    found = {}
    for result in results:
        if result.method == method and result.samples is not None:
            samples = result.samples
            values = np.array(samples.losses if band is None else np.array(samples.bands)[:, band])
            if quarter is not None:
                values = np.where(_quarters(samples.positions) == quarter, values, np.nan)
            found[result.style, result.seed] = values
    return found


def metric(results: Sequence[Result], method: str, name: str) -> Quantity:
    """A method's metric by style and seed, one number a run; runs without it are left out.

    Args:
        results: the results of the study.
        method: which.
        name: the name of the metric in a result; of one with a number a level, the mean.
    """
    values = {(run.style, run.seed): run.metrics.get(name) for run in results if run.method == method}
    means = {key: fmean(one.values()) if isinstance(one, dict) else one for key, one in values.items()}
    return {key: np.array([one], dtype=np.float64) for key, one in means.items() if one is not None}


def compare(results: Sequence[Result], method: Quantity, reference: Quantity, styles: Sequence[str]) -> Interval | None:
    """How a method differs from the reference, over the runs that both have.

    Args:
        results: the results of the study, which say to which picture a sample belongs.
        method: its numbers.
        reference: the reference's.
        styles: those to average over.

    Returns:
        The difference, or None where there is no pair of runs.
    """
    images = {one.style: one.samples.images for one in results if one.samples is not None}
    return _compare(method, reference, styles, images)


def compare_runs(method: Quantity, reference: Quantity, styles: Sequence[str]) -> Interval | None:
    """The same of quantities with one number a run: the interval knows styles and seeds, not names."""
    return _compare(method, reference, styles, {style: [style] for style in styles})


def _compare(
    method: Quantity, reference: Quantity, styles: Sequence[str], names: Mapping[str, Sequence[str]]
) -> Interval | None:
    tables, seeds, wins, runs = [], set(), 0, 0
    for style in styles:
        pairs = sorted(seed for name, seed in method if name == style and (name, seed) in reference)
        if not pairs:
            continue
        rows = [_by_name(method[style, seed] - reference[style, seed], names[style]) for seed in pairs]
        table = np.stack(rows)
        table = table[:, ~np.isnan(table).any(axis=0)]  # names without a sample in a quarter
        if table.size == 0:
            continue
        tables.append(table)
        seeds |= set(pairs)
        runs += len(pairs)
        wins += int((table.mean(axis=1) < 0).sum())
    if not tables:
        return None
    return Interval(*bootstrap(tables), runs=runs, seeds=len(seeds), wins=wins)


def check_paired(results: Sequence[Result]) -> None:
    """Refuse results of one style that were evaluated on different samples.

    Raises:
        FeraError: they were.
    """
    first: dict[str, Result] = {}
    for result in results:
        if result.samples is None:
            continue
        other = first.setdefault(result.style, result).samples
        assert other is not None
        mine = result.samples
        if mine.images != other.images or not np.allclose(mine.positions, other.positions, atol=1e-5):
            raise FeraError(
                f"{result.run} was evaluated on other samples than {first[result.style].run}: their losses do not "
                "pair. Evaluate both with the same settings and pictures"
            )


def _by_name(values: Array, images: Sequence[str]) -> Array:
    """Mean of each picture's samples, in the order of names; NaN samples are left out."""
    names, places = np.unique(np.array(images), return_inverse=True)
    valid = ~np.isnan(values)
    counts = np.bincount(places, valid, minlength=len(names))
    sums = np.bincount(places, np.where(valid, values, 0.0), minlength=len(names))
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _quarters(positions: Sequence[float]) -> Array:
    return np.minimum((np.array(positions) * 4).astype(int), 3)
