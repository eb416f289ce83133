"""The page that takes adapters out: into files for other tools, into their base, to the Hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from fera.errors import FeraError
from fera.web.commands import lines_of, number_of, path_of, text_of
from fera.web.jobs import OPEN, Queue
from fera.web.places import Places
from fera.web.rendering import printed, render
from fera.web.runs import with_adapters

FOLDER = "exports"
FORMATS = ("diffusers", "kohya", "comfyui")
TOOLS = ("comfyui", "kohya", "diffusers", "forge", "invokeai", "sdcpp")
DTYPES = ("fp32", "fp16", "bf16")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_MOST_SHOWN = 12


class TakeOut:
    """What the page shows and asks for.

    Args:
        places: where it may be done.
        queue: takes the commands, one at a time, for each may load a base.
    """

    def __init__(self, places: Places, queue: Queue) -> None:
        self._places = places
        self._queue = queue

    def page(self, request: Request) -> Response:
        """The three forms, and what was taken out before."""
        jobs = [job for job in reversed(self._queue.jobs) if job.command[:1] in (("export",), ("merge",), ("push",))]
        adapters = with_adapters(self._places.root)
        return render(
            "takeout.html",
            tab="takeout",
            adapters=adapters,
            run=request.query_params.get("run", adapters[0] if adapters else ""),
            traces=self._traces(adapters),
            tools=TOOLS,
            dtypes=DTYPES,
            jobs=[(job, printed(self._queue, job.id), job.state in OPEN) for job in jobs[:_MOST_SHOWN]],
        )

    def export(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Write a plain LoRA."""
        adapter = path_of(given, "adapter", self._places, needed=True)
        words = ["export", adapter, *self._gate(given), *self._dtype(given)]
        tool = _choice(given, "tool", TOOLS)
        words.append(f"--for={tool}")
        output = path_of(given, "output", self._places) or self._free(f"{_slug(adapter)}-{tool}", ".safetensors")
        prompts, base = lines_of(given, "prompts", "a prompt"), path_of(given, "base", self._places)
        if prompts and not base:
            raise FeraError("measuring draws the prompts: say with which base, or leave the prompts empty")
        words.append(f"--output={output}")
        words += [f"--base={base}", "--prompts", *prompts] if prompts else []
        return self._add(words)

    def merge(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Write a base with the adapter in its weights."""
        adapter = path_of(given, "adapter", self._places, needed=True)
        words = ["merge", adapter, *self._gate(given), *self._dtype(given)]
        if base := path_of(given, "base", self._places):
            words.append(f"--base={base}")
        if weight := number_of(given, "weight", float):
            words.append(f"--weight={weight}")
        output = path_of(given, "output", self._places) or self._free(f"{_slug(adapter)}-merged", "")
        words.append(f"--output={output}")
        if prompts := lines_of(given, "prompts", "a prompt"):
            words += ["--prompts", *prompts]
        return self._add(words)

    def push(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Upload an adapter with its card."""
        adapter = path_of(given, "adapter", self._places, needed=True)
        repo = text_of(given, "repo", needed=True)
        if not _REPO.fullmatch(repo) or repo.startswith("-"):
            raise FeraError(f"{repo[:80]} is no repository of the Hub: write owner/name")
        return self._add(["push", adapter, repo, *(["--private"] if given.get("private") is True else [])])

    def _add(self, words: list[str]) -> dict[str, Any]:
        job = self._queue.add(tuple(words), "", trains=False, line="takeout")
        return {"job": job.id, "command": job.text}

    def _gate(self, given: Mapping[str, Any]) -> list[str]:
        kind = _choice(given, "gate", ("uniform", "trace", "weights", "none"))
        if kind == "trace":
            return [f"--trace={path_of(given, 'trace', self._places, needed=True)}"]
        if kind == "weights":
            text = text_of(given, "weights", needed=True)
            try:
                [float(part) for part in text.split(",")]
            except ValueError:
                raise FeraError(f"the gate {text[:40]} is no list of numbers such as 0.2,0.3,0.5") from None
            return [f"--gate={text}"]
        return ["--gate=uniform"] if kind == "uniform" else []

    def _dtype(self, given: Mapping[str, Any]) -> list[str]:
        dtype = text_of(given, "dtype")
        if dtype and dtype not in DTYPES:
            raise FeraError(f"a precision is one of {', '.join(DTYPES)}")
        return [f"--dtype={dtype}"] if dtype else []

    def _free(self, name: str, suffix: str) -> str:
        for number in range(1, 1000):
            output = f"{FOLDER}/{name}{'' if number == 1 else f'-{number}'}{suffix}"
            asked_for = any(f"--output={output}" in job.command for job in self._queue.jobs if job.state in OPEN)
            if not asked_for and not self._places.inside(output).exists():
                return output
        raise FeraError(f"there are too many files named {name} in {FOLDER}: remove some, or give a path")

    def _traces(self, adapters: list[str]) -> list[str]:
        found = []
        for name in adapters:
            for file in ("gates.csv", "analysis/gates.csv"):
                if Path(self._places.root, name, file).is_file():
                    found.append(f"{name}/{file}")
        return found


def _choice(given: Mapping[str, Any], name: str, choices: tuple[str, ...]) -> str:
    value = text_of(given, name) or choices[0]
    if value not in choices:
        raise FeraError(f"{name} is one of {', '.join(choices)}; reload the page")
    return value


def _slug(path: str) -> str:
    parts = [part for part in Path(path).parts if part not in ("adapter", "..", ".")]
    return re.sub(r"[^a-z0-9]+", "-", parts[-1].lower().removesuffix(".safetensors")).strip("-")[:60] or "adapter"
