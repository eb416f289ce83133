"""Working through a study, alone or beside other processes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fera.comparison.claims import claim, holder
from fera.comparison.data import style_folders
from fera.comparison.matching import check_matched
from fera.comparison.plan import Run, configure, differences, given_rate, portable, runs_of, trials_for
from fera.comparison.results import Result, read_result
from fera.comparison.running import Task, execute
from fera.comparison.study import Study
from fera.errors import FeraError
from fera.support.durations import about_time
from fera.support.progress import SILENT, Listener

_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True)
class Options:
    """What part of a study to do.

    Args:
        methods: those wanted; all when None.
        max_runs: most trainings of this call, trials of learning rates among them.
        overwrite: make runs again whose settings have changed.
    """

    methods: list[str] | None = None
    max_runs: int | None = None
    overwrite: bool = False


def work(study: Study, output: Path, options: Options, listener: Listener = SILENT) -> int:
    """Do the runs that are missing, as far as no other process does them.

    Args:
        study: the study.
        output: its folder.
        options: what part of it.
        listener: hears about progress.

    Returns:
        How many trainings were done.

    Raises:
        FeraError: the study's methods cannot be, differ in size, or finished runs are of other settings.
        KeyboardInterrupt: Ctrl-C; finished runs stay, the one in progress has a checkpoint.
    """
    styles = style_folders(study, output)
    runs = list(runs_of(study, options.methods))
    for run in runs:  # every mistake before the first training
        configure(study, run, output, styles[run.style], run.rate)
    check_matched(study, output, styles)
    desk = _Desk(study, output, styles, options)
    waiting = [run for run in runs if not desk.is_done(run)]
    done, said = 0, ""
    seconds: list[float] = []
    while waiting and (options.max_runs is None or done < options.max_runs):
        result = None
        for run in waiting:
            result = desk.attempt(run, listener, f"[{len(runs) - len(waiting) + 1}/{len(runs)}] {run}")
            if result is not None:
                break
        if result is not None:
            done += 1
            seconds.append(result.seconds)
        waiting = [run for run in waiting if not desk.is_done(run)]
        if result is not None and waiting:
            left = sum(seconds) / len(seconds) * len(waiting)
            listener.say(f"  {result.seconds:.0f} s; {len(waiting)} runs left, {about_time(left)} for one process")
        elif result is None and waiting:
            others = sorted({name for run in waiting if (name := holder(run.folder(output)))})
            if (now := ", ".join(others)) != said:
                listener.say(f"waiting for {now or 'another process'}: {len(waiting)} runs left")
                said = now
            time.sleep(_PATIENCE_SECONDS)
    return done


def chosen_rate(study: Study, output: Path, method: str, style: str) -> float | None:
    """A method's learning rate for a style; None where the configuration says it.

    Raises:
        LookupError: trials that choose it are not finished.
    """
    trials = trials_for(study, method, style)
    if not trials:
        return given_rate(study, method)
    if (kept := _kept_rate(study, output, method, style)) is not None:
        return kept
    losses: dict[float, list[float]] = {}
    for trial in trials:
        result = read_result(trial.folder(output))
        if result is None:
            raise LookupError(str(trial))
        assert trial.rate is not None
        losses.setdefault(trial.rate, []).append(_validation_loss(result))
    return min(losses, key=lambda rate: sum(losses[rate]) / len(losses[rate]))


class _Desk:
    """Does one run at a time, if it is free and due."""

    def __init__(self, study: Study, output: Path, styles: dict[str, Path], options: Options) -> None:
        self._study = study
        self._output = output
        self._styles = styles
        self._options = options

    def is_done(self, run: Run) -> bool:
        """Whether its result is there and of today's settings, or, of a trial, nothing waits for it."""
        if run.is_search and _kept_rate(self._study, self._output, run.method, run.style) is not None:
            return True
        result = read_result(run.folder(self._output))
        task = self._task(run)
        if result is None or task is None:
            return False
        changed = differences(result.settings, task.settings)
        if changed and not self._options.overwrite:
            raise FeraError(
                f"{run} was done with other settings: {'; '.join(changed)}. Use another `output`, or make such runs "
                "again with `overwrite`"
            )
        return not changed

    def attempt(self, run: Run, listener: Listener, title: str) -> Result | None:
        """Do it, unless it waits for a learning rate or another process has it."""
        task = self._task(run)
        if task is None:
            return None
        with claim(task.folder) as is_ours:
            if not is_ours or self.is_done(run):
                return None
            listener.say(f"{title} (learning rate {task.config.train.learning_rate:g})")
            return execute(task, listener)

    def _task(self, run: Run) -> Task | None:
        try:
            rate = run.rate if run.is_search else chosen_rate(self._study, self._output, run.method, run.style)
        except LookupError:
            return None
        place = self._styles[run.style]
        config = configure(self._study, run, self._output, place, rate)
        settings = portable(self._study, config)
        if run.is_search:  # trials are not evaluated
            settings = {name: value for name, value in settings.items() if not name.startswith("evaluation.")}
        return Task(run, run.folder(self._output), config, settings, self._study.evaluation, place / "test")


def rates_at_the_edge(study: Study, results: Sequence[Result]) -> list[str]:
    """Methods whose chosen rate is the lowest or highest candidate: a better one may lie outside."""
    lines = []
    for method in study.methods:
        rates = sorted({trial.rate or 0.0 for style in study.style_names for trial in trials_for(study, method, style)})
        chosen = {one.settings["train.learning_rate"] for one in results if one.method == method}
        if len(rates) > 1 and (edge := chosen & {rates[0], rates[-1]}):
            lines.append(
                f"{study.label(method)}: the search chose {', '.join(f'{rate:g}' for rate in sorted(edge))}, at the "
                f"edge of its candidates ({rates[0]:g} to {rates[-1]:g}); a better rate may lie outside"
            )
    return lines


def _kept_rate(study: Study, output: Path, method: str, style: str) -> float | None:
    """The rate of a method's finished runs where its trials are missing: their folder was put together without them."""
    if any(read_result(trial.folder(output)) for trial in trials_for(study, method, style)):
        return None
    judged_elsewhere = study.learning_rates is not None and study.learning_rates.styles is not None
    styles = study.style_names if judged_elsewhere else [style]
    runs = [Run(method, one, seed) for one in styles for seed in study.seeds]
    results = [result for run in runs if (result := read_result(run.folder(output))) is not None]
    rates = {float(result.settings["train.learning_rate"]) for result in results}
    return rates.pop() if len(rates) == 1 else None


def _validation_loss(result: Result) -> float:
    if result.validation_loss is None:
        raise FeraError(f"{result.run} measured no validation loss; its style needs validation pictures")
    return result.validation_loss
