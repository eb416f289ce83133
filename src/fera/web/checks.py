"""What `fera data check` found, as the page shows it: by picture, and in all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fera.preflight.sound_check import channels_in_words
from fera.web.jobs import Job, Queue

_MOST_BYTES = 2**26


@dataclass(frozen=True)
class Check:
    """A report of `fera data check --json`.

    Args:
        facts: of each picture, in words.
        bad: names of those that cannot be used, and why.
        small: names of those that are enlarged.
        problems: why training would refuse.
        notes: whatever else there is to know.
        buckets: a line about each size.
    """

    facts: Mapping[str, Sequence[str]]
    bad: Mapping[str, str]
    small: frozenset[str]
    problems: Sequence[str]
    notes: Sequence[str]
    buckets: Sequence[str]

    def facts_of(self, name: str) -> Sequence[str]:
        """What is known of a picture."""
        return [self.bad[name]] if name in self.bad else self.facts.get(name.partition("#")[0], ())


def checked(queue: Queue, folder: str) -> tuple[Check | None, Job | None]:
    """The last check of a folder that ended with a report, and the last one that was asked for.

    Args:
        queue: where checks are jobs.
        folder: as it stands in the command.
    """
    jobs = [job for job in queue.jobs if job.command[:3] == ("data", "check", folder) and "--json" in job.command]
    for job in reversed(jobs):
        if job.state in ("done", "failed") and (check := _read(queue, job.id, folder)) is not None:
            return check, jobs[-1]
    return None, jobs[-1] if jobs else None


def read_json(text: str) -> Any:
    """The JSON object in what a command printed, whatever stands around it; None where there is none."""
    start, end = text.find("{"), text.rfind("}")
    try:
        return json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None


@lru_cache(maxsize=8)
def _read(queue: Queue, id_: str, folder: str) -> Check | None:
    report = read_json(queue.output(id_, most=_MOST_BYTES))
    if not isinstance(report, dict):
        return None
    try:
        return _check(report, folder)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None  # of another version of fera


def _check(report: Mapping[str, Any], folder: str) -> Check:
    small = frozenset(report["enlarged"])
    twins = {name: [other for other in names if other != name] for names in report["duplicates"] for name in names}
    facts = {}
    for picture in report["listing"]:
        name = picture["name"]
        sound = picture.get("sound")
        parts = [_size(picture["size"])] if sound is None else _about(sound)
        if picture["bucket"]:
            parts[0] += f" to {_size(picture['bucket'])}"
            whole = list(picture["size"]) == [round(side) for side in picture["crop"][2:]]
            parts += [] if whole else ["cropped"]
        if clip := picture.get("clip"):
            parts.append(f"{clip['frames']} frames")
        parts += ["smaller than its size"] if name in small else []
        parts += ["longer than any size"] if name in report["cropped"] else []
        parts += [f"equal to {', '.join(twins[name][:3])}"] if name in twins else []
        parts += [picture["colours"]] if picture["colours"] else []
        parts += ["has a mask"] if picture["mask"] else []
        facts[name] = parts
    bad = {}
    for line in report["bad"]:
        name = _name(line, folder)
        if name:
            bad[name[0]] = name[1]
    notes = [*report["notes"], *report["colours"]]
    return Check(facts, bad, small, report["problems"], notes, report["buckets"])


def _about(sound: Mapping[str, Any]) -> list[str]:
    return [
        f"{sound['seconds']:.3g} s",
        f"{sound['rate']} Hz",
        channels_in_words(sound["channels"]),
        str(sound["codec"]),
    ]


def _name(line: str, folder: str) -> tuple[str, str] | None:
    """The picture that a line is about, and the rest of the line: "data/a b.png is empty (0 bytes)"."""
    start = f"{folder.removeprefix('./')}/"
    line = line.removeprefix("./")
    if not line.startswith(start):
        return None
    rest = line.removeprefix(start)
    for words in (" is ", " has ", " cannot ", " does "):
        before, found, after = rest.partition(words)
        if found:
            return before, (found + after).strip()
    return None


def _size(size: Sequence[int]) -> str:
    return f"{size[0]} × {size[1]}"
