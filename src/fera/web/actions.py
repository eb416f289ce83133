"""What the page's buttons do: each is a command of fera, put in the queue."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fera.config.reading import load_config
from fera.errors import FeraError
from fera.support.files import replace_text
from fera.web.form import read_form, to_short_toml
from fera.web.jobs import Job, Queue
from fera.web.places import Places
from fera.web.runs import read_row, run_path

CONFIGS = "configs"


class Actions:
    """What may be asked for.

    Args:
        places: where it may be done.
        queue: takes the commands.
    """

    def __init__(self, places: Places, queue: Queue) -> None:
        self._places = places
        self._queue = queue

    def preview(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """The configuration that a form stands for, checked, as TOML, and the command that would train by it."""
        config = read_form(_mapping(asked))
        self._places.check(config)
        name = f"{CONFIGS}/{_slug(config.output_dir)}.toml"
        return {"toml": to_short_toml(config), "command": f"fera train {name}"}

    def train(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """Save the configuration and put its run in the queue."""
        config = read_form(_mapping(asked))
        self._places.check(config)
        run = run_path(self._places, str(config.output_dir))
        name = self._places.name(run)
        if (run / "config.toml").exists():
            raise FeraError(
                f"output_dir {name} already holds a run: choose another, or go on with that one from its page"
            )
        path = self._save(_slug(config.output_dir), to_short_toml(config))
        job = self._queue.add(("train", path), name, trains=True)
        return {"run": name, "command": job.text}

    def check(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """Save the configuration, and have `fera data check` look at its data, and at what it needs."""
        config = read_form(_mapping(asked))
        self._places.check(config)
        path = self._save(_slug(config.output_dir), to_short_toml(config))
        job = self._queue.add(("data", "check", path), "", trains=False)
        return {"job": job.id, "command": job.text}

    def resume(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """Go on with a run from its last checkpoint."""
        row = read_row(self._places, self._queue, _text(asked, "run"))
        if not row.can_resume:
            raise FeraError(f"{row.name} cannot go on: it is {row.words}")
        path = run_path(self._places, row.name)
        config = load_config(path / "config.toml")
        self._places.check(config)
        if run_path(self._places, str(config.output_dir)) != path:
            raise FeraError(
                f"{row.name}/config.toml has output_dir {config.output_dir}: the folder was moved. Set it to {row.name}"
            )
        return self._told(("train", f"{_word(row.name)}/config.toml", "--resume"), row.name, trains=True)

    def stop(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """Stop a run that this page started; it saves a checkpoint first. A waiting one leaves the queue."""
        row = read_row(self._places, self._queue, _text(asked, "run"))
        job = self._queue.last_of(row.name)
        if job is None or not row.is_ours:
            raise FeraError(f"{row.name} was not started here, or has ended: stop it where it was started")
        return {"state": self._queue.stop(job.id).state}

    def cancel(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """Stop a job that is no run: a drawing, a check, an export."""
        job = self._queue.job(_text(asked, "job"))
        if job is None or job.trains:
            raise FeraError("there is no such job any more; reload the page")
        return {"state": self._queue.stop(job.id).state}

    def report(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """Write a run's report."""
        row = read_row(self._places, self._queue, _text(asked, "run"))
        return self._told(("report", _word(row.name), "--no-draw"), row.name, trains=False)

    def analyze(self, asked: Mapping[str, Any]) -> dict[str, str]:
        """Draw with a run's adapter, and trace its gates along the noise."""
        row = read_row(self._places, self._queue, _text(asked, "run"))
        config = load_config(run_path(self._places, row.name) / "config.toml")
        self._places.check(config)
        # A word of a file that looks like a flag would be one.
        prompts = [prompt for prompt in config.validation.prompts if not prompt.startswith("-")][:4]
        if not prompts:
            raise FeraError(
                f"{row.name} has no validation.prompts to draw: run fera analyze with --prompts of your own"
            )
        folder = _word(row.name)
        command = ("analyze", f"--base={config.base}", f"--adapter={folder}", f"--output={folder}/analysis")
        return self._told((*command, "--overwrite", "--no-experts", "--prompts", *prompts), row.name, trains=False)

    def _told(self, command: tuple[str, ...], run: str, *, trains: bool) -> dict[str, str]:
        job: Job = self._queue.add(command, run, trains=trains)
        return {"run": run, "job": job.id, "command": job.text}

    def _save(self, name: str, toml: str) -> str:
        """Write a configuration under a name of its own; one that is there already stays as it is."""
        for number in range(1, 1000):
            relative = f"{CONFIGS}/{name}{'' if number == 1 else f'-{number}'}.toml"
            path = self._places.inside(relative)
            if path.exists() and _content(path) != toml:
                continue
            try:
                path.parent.mkdir(exist_ok=True)
                replace_text(path, toml)
            except OSError as error:
                reason = error.strerror or os.strerror(error.errno or 0)
                raise FeraError(f"cannot write {relative}: {reason}. Nothing was started") from error
            return relative
        raise FeraError(
            f"there are too many configurations named {name}: remove some from {CONFIGS}, or rename the run"
        )


def _mapping(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    values = asked.get("values")
    if not isinstance(values, dict):
        raise FeraError("the form was not sent whole; reload the page")
    return values


def _text(asked: Mapping[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not value:
        raise FeraError(f"{name} was not sent; reload the page")
    return value


def _word(name: str) -> str:
    """A folder's name as an argument: one that begins like a flag is no flag."""
    return f"./{name}" if name.startswith("-") else name


def _slug(output: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", output.name.lower()).strip("-")[:60] or "run"


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
