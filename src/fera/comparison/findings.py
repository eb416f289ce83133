"""What a study found: differences from the reference, and the tables that show them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from fera.comparison.results import Result
from fera.comparison.statistics import Interval, check_paired, compare, compare_runs, losses, metric
from fera.comparison.study import Study

_NOTHING = "–"
_METRICS = {
    "fid": "FID",
    "kid": "KID",
    "similarity": "similarity",
    "drift": "drift",
    "sliced_wasserstein": "sliced Wasserstein",
    "style_score": "style",
    "concept_score": "concept",
    "diversity_between_prompts": "diversity",
}
QUARTER_NAMES = ("most noise", "much noise", "some noise", "least noise")


@dataclass(frozen=True)
class Finding:
    """One method against the reference.

    Args:
        method: its name.
        label: how tables call it.
        runs: its results that have a partner in the reference, or all of the reference's own.
        overall: difference of the loss, over styles, seeds and names; None for the reference.
        by_style: the same in each style that both have.
        by_quarter: in each quarter of the noise process, noise to clean.
        by_band: the by band of the loss in each frequency band, low to high.
        by_metric: the by metric of each metric of drawn pictures that both have.
    """

    method: str
    label: str
    runs: list[Result]
    overall: Interval | None
    by_style: dict[str, Interval]
    by_quarter: list[Interval | None]
    by_band: list[Interval | None]
    by_metric: dict[str, Interval]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Args:
        title: what it shows.
        columns: heads.
        rows: the rows of cells.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]

    def to_markdown(self) -> str:
        """As Markdown, with its title above."""
        lines = [f"## {self.title}", "", _row(self.columns), _row(["---"] * len(self.columns))]
        return "\n".join([*lines, *(_row(row) for row in self.rows)])


def find_differences(study: Study, results: Sequence[Result]) -> list[Finding]:
    """Compare every method that has results with the reference, in the study's order.

    Raises:
        FeraError: results of one style were evaluated on different samples.
    """
    check_paired(results)
    return [
        _finding(study, results, method)
        for method in study.methods
        if any(result.method == method for result in results)
    ]


def tables(study: Study, findings: Sequence[Finding]) -> list[Table]:
    """All tables of a report."""
    made = [overview(study, findings), _styles(study, findings), _places(findings), *_metrics(findings)]
    return [*made, _costs(findings), *_gates(findings), _validation(study, findings)]


def overview(study: Study, findings: Sequence[Finding]) -> Table:
    """The table that says who is better."""
    rows = []
    for finding in findings:
        first, interval = finding.runs[0], finding.overall
        router = f" + {first.router_parameters:,}" if first.router_parameters else ""
        loss = _mean([fmean(run.samples.losses) for run in finding.runs if run.samples])
        rates = sorted({run.settings["train.learning_rate"] for run in finding.runs})
        if interval is None:
            verdict = ["reference", "", ""]
        else:
            verdict = [_interval(interval), f"{interval.wins} of {interval.runs}", _verdict(interval)]
        sizes = f"{first.parameters:,}{router}"
        rows.append(
            [finding.label, sizes, ", ".join(f"{rate:g}" for rate in rates), str(len(finding.runs)), loss, *verdict]
        )
    title = f"Loss on test names, against {study.label(study.reference_method)}"
    heads = ["method", "parameters", "learning rate", "runs", "loss", "difference x 1000, 95 %", "lower in", "so"]
    return Table(title, heads, rows)


def remarks(study: Study, findings: Sequence[Finding]) -> list[str]:
    """What a reader must know beside the tables."""
    lines = []
    seeds = max((len({run.seed for run in finding.runs}) for finding in findings), default=0)
    if seeds < 2:
        lines.append(
            "One seed only: how much training runs vary is unknown, so the intervals are too narrow and no difference "
            "here is a finding."
        )
    wanted = len(study.seeds) * len(study.styles)
    if short := [f"{finding.label} {len(finding.runs)}" for finding in findings if len(finding.runs) < wanted]:
        lines.append(f"Unfinished: of {wanted} runs each there are {', '.join(short)}.")
    absent = [study.label(method) for method in study.methods if method not in [one.method for one in findings]]
    if absent:
        lines.append(f"Without runs yet: {', '.join(absent)}.")
    for finding in findings:
        method = study.methods[finding.method]
        if not method.matched:
            lines.append(f"{finding.label} is not matched in size.{' ' + method.note if method.note else ''}")
        elif method.note:
            lines.append(f"{finding.label}: {method.note}")
    return lines


def _finding(study: Study, results: Sequence[Result], method: str) -> Finding:
    reference = study.reference_method
    has = {(run.style, run.seed) for run in results if run.method == reference}
    runs = [run for run in results if run.method == method and ((run.style, run.seed) in has or not has)]
    label = study.label(method)
    if method == reference or not runs:
        return Finding(method, label, runs or [run for run in results if run.method == method], None, {}, [], [], {})
    styles = study.style_names

    def difference(names: Sequence[str], quarter: int | None = None, band: int | None = None) -> Interval | None:
        ours = losses(results, method, quarter, band)
        return compare(results, ours, losses(results, reference, quarter, band), names)

    bands = min((len(run.samples.bands[0]) for run in runs if run.samples), default=0)
    by_style = {style: difference([style]) for style in styles}
    by_metric = {
        name: compare_runs(metric(results, method, name), metric(results, reference, name), styles) for name in _METRICS
    }
    return Finding(
        method,
        label,
        runs,
        difference(styles),
        {style: interval for style, interval in by_style.items() if interval is not None},
        [difference(styles, quarter=quarter) for quarter in range(len(QUARTER_NAMES))],
        [difference(styles, band=band) for band in range(bands)],
        {name: interval for name, interval in by_metric.items() if interval is not None},
    )


def _styles(study: Study, findings: Sequence[Finding]) -> Table:
    compared = [finding for finding in findings if finding.overall is not None]
    rows = [
        [style, *(_interval(finding.by_style.get(style)) for finding in compared)]
        for style in study.style_names
        if any(style in finding.by_style for finding in compared)
    ]
    return Table("Difference x 1000 in each style", ["style", *(finding.label for finding in compared)], rows)


def _places(findings: Sequence[Finding]) -> Table:
    compared = [finding for finding in findings if finding.overall is not None]
    rows = [
        [name, *(_interval(finding.by_quarter[index]) for finding in compared)]
        for index, name in enumerate(QUARTER_NAMES)
    ]
    bands = min((len(finding.by_band) for finding in compared), default=0)
    rows += [
        [f"band {band + 1} of {bands}", *(_interval(finding.by_band[band]) for finding in compared)]
        for band in range(bands)
    ]
    heads = ["quarter of the noise process, or frequency band", *(finding.label for finding in compared)]
    return Table("Difference x 1000 by noise and by frequency", heads, rows)


def _metrics(findings: Sequence[Finding]) -> list[Table]:
    has = {name for name in _METRICS if any(run.metrics.get(name) is not None for one in findings for run in one.runs)}
    if not has:
        return []
    names = [name for name in _METRICS if name in has]
    rows = [[finding.label, *(_metric(finding.runs, name) for name in names)] for finding in findings]
    heads = ["method", *(_METRICS[name] for name in names)]
    made = [Table("Pictures of test names (means over runs, deviation between runs)", heads, rows)]
    compared = [finding for finding in findings if finding.by_metric]
    if compared:
        rows = [[one.label, *(_metric_interval(one.by_metric.get(name)) for name in names)] for one in compared]
        made.append(Table("Pictures of test names, paired differences (95 % over styles and seeds)", heads, rows))
    return made


def _validation(study: Study, findings: Sequence[Finding]) -> Table:
    def cell(finding: Finding, style: str) -> str:
        runs = [run for run in finding.runs if run.style == style]
        return _mean([run.validation_loss for run in runs if run.validation_loss is not None])

    styles = [style for style in study.style_names if any(run.style == style for one in findings for run in one.runs)]
    rows = [[finding.label, *(cell(finding, style) for style in styles)] for finding in findings]
    return Table("Loss on validation names, to choose by (means over seeds)", ["method", *styles], rows)


def machine(result: Result) -> str:
    """What a run ran on, as reports name it."""
    hardware = result.hardware
    return str(hardware["cpu"] if hardware["device"] == "cpu" else hardware["device"])


def _costs(findings: Sequence[Finding]) -> Table:
    # Seconds of one machine say nothing about those of another, so each has rows of its own.
    machines = sorted({machine(run) for finding in findings for run in finding.runs})
    rows = []
    for name in machines:
        for finding in findings:
            if runs := [run for run in finding.runs if machine(run) == name]:
                rows.append([*([name] if len(machines) > 1 else []), finding.label, *_mean_costs(runs)])
    heads = ["method", "s a training step", "s a drawing step", "peak memory, MB", "weights, kB"]
    if len(machines) > 1:
        heads.insert(0, "machine")
    return Table("Costs (means over runs)", heads, rows)


def _mean_costs(runs: Sequence[Result]) -> list[str]:
    memory = [run.peak_memory_bytes / 1e6 for run in runs if run.peak_memory_bytes]
    drawing = [run.seconds_per_generation_step for run in runs if run.seconds_per_generation_step]
    return [
        _mean([run.seconds_per_training_step for run in runs]),
        _mean(drawing),
        _mean(memory, ".0f"),
        _mean([run.adapter_bytes / 1e3 for run in runs], ",.0f"),
    ]


def _gates(findings: Sequence[Finding]) -> list[Table]:
    rows = []
    for finding in findings:
        gates = [run.gates for run in finding.runs if run.gates]
        for index, name in enumerate(QUARTER_NAMES if gates else ()):
            quarters = [run[index] for run in gates if run[index]["samples"]]
            if quarters:
                use = [fmean(shares) for shares in zip(*(sorted(one["use"])[::-1] for one in quarters), strict=True)]
                entropies = _mean([one["entropy"] for one in quarters], ".2f")
                rows.append([finding.label, name, " ".join(f"{share:.2f}" for share in use), entropies])
    heads = ["method", "quarter", "use of the experts, most used first", "entropy of a gate"]
    return [Table("Gates", heads, rows)] if rows else []


def _metric(runs: Sequence[Result], name: str) -> str:
    numbers = [float(one[0]) for one in metric(runs, runs[0].method, name).values()]
    if not numbers:
        return _NOTHING
    mean = fmean(numbers)
    spread = (sum((number - mean) ** 2 for number in numbers) / max(len(numbers) - 1, 1)) ** 0.5
    return f"{mean:.3g} ± {spread:.2g}" if len(numbers) > 1 else f"{mean:.3g}"


def _verdict(interval: Interval) -> str:
    if interval.seeds < 2:
        return "one seed: no claim"
    if not interval.is_clear:
        return "no clear difference"
    return "better" if interval.high < 0 else "worse"


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return _NOTHING
    return f"{1000 * interval.mean:+.2f} [{1000 * interval.low:+.2f}, {1000 * interval.high:+.2f}]"


def _metric_interval(interval: Interval | None) -> str:
    if interval is None:
        return _NOTHING
    if interval.runs < 2:
        return f"{interval.mean:+.2g}"
    return f"{interval.mean:+.2g} [{interval.low:+.2g}, {interval.high:+.2g}]"


def _mean(values: Sequence[float], form: str = ".4f") -> str:
    return format(fmean(values), form) if values else _NOTHING


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
