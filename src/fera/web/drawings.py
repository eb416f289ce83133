"""The page to draw on: `fera generate` as a form, and its pictures as they form."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fera.adapters.header import read_header
from fera.errors import FeraError
from fera.format import CONFIG, LIVE, LIVE_STEPS, WEIGHTS
from fera.web.commands import lines_of, list_of, number_of, path_of, text_of
from fera.web.jobs import OPEN, Job, Queue
from fera.web.places import Places
from fera.web.rendering import asked, printed, render
from fera.web.runs import with_adapters

FOLDER = "drawings"
_MOST_SHOWN = 24
# Of a drawing's own files that are read.
_MOST_BYTES = 2**25
_FINAL = re.compile(r"(\d{3,9})(-.*)?\.png$")
_WHOLE = ("seed", "steps", "width", "height", "num_frames", "batch_size")
_CHOICES = {"precision": ("fp32", "fp16", "bf16"), "offload": ("none", "blocks", "disk")}


class Drawings:
    """What the page shows and asks for.

    Args:
        places: where it may be done.
        queue: takes the commands; drawings wait for each other.
    """

    def __init__(self, places: Places, queue: Queue) -> None:
        self._places = places
        self._queue = queue

    def page(self, request: Request) -> Response:
        """The form, begun with a run where one is named, and what was drawn before."""
        return render(
            "draw.html",
            tab="draw",
            adapters=with_adapters(self._places.root),
            run=request.query_params.get("run", ""),
            shown=request.query_params.get("name", ""),
            drawings=self._recent(),
        )

    def recent(self, _request: Request) -> Response:
        """What was drawn, as a part of the page."""
        return render("drawings.html", drawings=self._recent())

    def adapter(self, request: Request) -> Response:
        """What an adapter is: its experts, its bands, its base."""
        text = asked(request, "path")
        path = self._places.inside(text)
        if not path.exists():
            raise FeraError(f"there is no adapter {text} here")
        for folder in (path, path / "adapter"):
            for name in (WEIGHTS, CONFIG):
                self._places.inside(folder / name)  # a link in it may lead elsewhere
        settings = read_header(path).settings
        has_gate = settings.get("router") != "gradient"
        experts = settings.get("num_experts", 0)
        base = settings.get("base_model_name_or_path") or ""
        return JSONResponse({"experts": experts if has_gate else 0, "base": base})

    def live(self, request: Request) -> Response:
        """How a drawing is getting on: its pictures, their gates step by step, what the command says."""
        name = asked(request, "name")
        folder = self._folder(name)
        job = self._job(name)
        is_open = job is not None and job.state in OPEN
        if not folder.is_dir():
            raise FeraError(f"there is no drawing {name} any more")
        told = {
            "name": name,
            "is_open": is_open,
            "state": "done" if job is None else job.state,
            "job": job.id if job is not None and is_open else "",
            "command": "" if job is None else job.text,
            "said": "" if job is None else printed(self._queue, job.id),
            "pictures": self._pictures(folder),
        }
        return JSONResponse(told)

    def preview(self, asked_for: Mapping[str, Any]) -> dict[str, Any]:
        """The command that a form stands for."""
        return {"command": Job("", self._command(asked_for, f"{FOLDER}/NEW"), "", False).text}

    def draw(self, asked_for: Mapping[str, Any]) -> dict[str, Any]:
        """Draw what the form says, into a folder of its own."""
        command = self._command(asked_for, "NEW")  # refused before a folder is made
        prompts = lines_of(asked_for, "prompts", "a prompt")
        name = self._new(prompts[0])
        job = self._queue.add((*command[:-1], f"--output={name}"), "", trains=False, line="draw")
        return {"name": name, "job": job.id, "command": job.text}

    def _command(self, given: Mapping[str, Any], output: str) -> tuple[str, ...]:
        prompts = lines_of(given, "prompts", "a prompt")
        if not prompts:
            raise FeraError("there is nothing to draw yet: write a prompt")
        words = ["generate", *prompts]
        if base := path_of(given, "base", self._places):
            words.append(f"--base={base}")
        adapters = list_of(given, "adapters")
        for entry in adapters:
            path = path_of(entry, "path", self._places, needed=True)
            words.append(f"--adapter={path}={_weights(text_of(entry, 'weights'))}")
        gates = [_gate(entry) for entry in adapters]
        factors = [_factors(entry) for entry in adapters]
        if any(gate != "routed" for gate in gates):
            words += [f"--gate={gate}" for gate in gates]
        if any(factor != "all" for factor in factors):
            words += [f"--experts={factor}" for factor in factors]
        words += [f"--{name.replace('_', '-')}={value}" for name in _WHOLE if (value := number_of(given, name))]
        words += [
            f"--{name.replace('_', '-')}={value}"
            for name in ("guidance_scale", "adapter_start", "frame_rate", "seconds")
            if (value := number_of(given, name, float))
        ]
        if negative := text_of(given, "negative_prompt"):
            words.append(f"--negative-prompt={negative}")
        for name, choices in _CHOICES.items():
            if (choice := text_of(given, name)) and choice != choices[0]:
                if choice not in choices:
                    raise FeraError(f"{name} is one of {', '.join(choices)}")
                words.append(f"--{name}={choice}")
        for name in ("sources", "masks"):
            if paths := lines_of(given, name, "a path"):
                for path in paths:
                    for one in path.split("|"):
                        self._places.inside(one)
                words += [f"--{name}", *paths]
        if adapters and given.get("compare_base") is True:
            words.append("--compare-base")
        return (*words, "--live", f"--output={output}")

    def _new(self, prompt: str) -> str:
        """A folder that is nobody else's."""
        folder = self._places.inside(FOLDER)
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40].strip("-")
        folder.mkdir(exist_ok=True)
        taken = [int(found[1]) for path in folder.iterdir() if (found := re.match(r"(\d{1,9})(-|$)", path.name))]
        for number in range(max(taken, default=0) + 1, max(taken, default=0) + 100):
            name = f"{FOLDER}/{number:04d}" + (f"-{slug}" if slug else "")
            try:
                self._places.inside(name).mkdir()
            except FileExistsError:
                continue  # another page was quicker
            return name
        raise FeraError(f"cannot find a name in {FOLDER}; try again")

    def _folder(self, name: str) -> Path:
        folder = self._places.inside(name)
        if folder.parent != self._places.inside(FOLDER):
            raise FeraError(f"{name} is no drawing of this page")
        return folder

    def _job(self, name: str) -> Job | None:
        wanted = f"--output={name}"
        return next((job for job in reversed(self._queue.jobs) if wanted in job.command), None)

    def _recent(self) -> list[dict[str, str]]:
        """The last drawings: their names, and the grid of those that are done."""
        folder = self._places.inside(FOLDER)
        if not folder.is_dir():
            return []
        names = [path.name for path in folder.iterdir() if path.is_dir() and path.name[:1].isdigit()]
        found = []
        for name in sorted(names, reverse=True)[:_MOST_SHOWN]:
            grid = folder / name / "grid.png"
            is_there = grid.is_file() and not grid.is_symlink()
            about = {"name": f"{FOLDER}/{name}", "words": name.replace("-", " ")}
            found.append({**about, "grid": f"{FOLDER}/{name}/grid.png" if is_there else ""})
        return found

    def _pictures(self, folder: Path) -> list[dict[str, Any]]:
        """Of each picture its prompt, what it looked like at each step, and what it became."""
        pictures: dict[int, dict[str, Any]] = {}

        def row(number: int, name: str) -> dict[str, Any]:
            picture = pictures.setdefault(number, {"number": number, "prompt": "", "rows": {}})
            found: dict[str, Any] = picture["rows"].setdefault(
                name, {"steps": [], "final": "", "clip": "", "sound": ""}
            )
            return found

        for line in _lines(folder / LIVE / LIVE_STEPS):
            number, name = line.get("picture"), line.get("row")
            if isinstance(number, int) and name in ("base", "adapted"):
                held = row(number, name)
                pictures[number]["prompt"] = str(line.get("prompt", ""))
                preview = line.get("preview")
                is_named = isinstance(preview, str) and re.fullmatch(r"[\w-]+\.jpg", preview) is not None
                picture = self._places.name(folder / LIVE / str(preview)) if is_named else ""
                kept = {key: line.get(key) for key in ("step", "steps", "timestep", "gates", "bands")}
                held["steps"].append({**kept, "preview": picture})
        for number, files in _finals(folder).items():
            drawn = pictures.get(number, {}).get("rows", {})
            # The base's row is drawn first: a file that is alone is its own, where it has one.
            names = ("adapted", "base") if len(files) > 1 else ("base" if "base" in drawn else "adapted",)
            for name, file in zip(names, files, strict=False):
                held = row(number, name)
                held["final"], held["version"] = self._places.name(file), str(file.stat().st_mtime_ns)
                if (clip := file.with_suffix(".mp4")).is_file() and not clip.is_symlink():
                    held["clip"] = self._places.name(clip)
                if (sound := file.with_suffix(".wav")).is_file() and not sound.is_symlink():
                    held["sound"] = self._places.name(sound)
        return [pictures[number] for number in sorted(pictures)]


def _weights(text: str) -> str:
    try:
        numbers = [float(part) for part in (text or "1").split(":")]
    except ValueError:
        raise FeraError(f"weight {text[:40]} is no number: give one, or several with colons such as 0:1") from None
    return ":".join(f"{number:g}" for number in numbers)


def _gate(entry: Mapping[str, Any]) -> str:
    """The gate of an adapter: what is on sliders is brought to a sum of 1."""
    gate = entry.get("gate", "routed")
    if isinstance(gate, str):
        if gate not in ("routed", "uniform"):
            raise FeraError("a gate is routed, uniform, or a weight an expert; reload the page")
        return gate
    numbers = _numbers(gate, "a gate")
    total = sum(numbers)
    if min(numbers) < 0 or total <= 0:
        raise FeraError("a fixed gate needs a weight above 0: move a slider of its experts")
    return ",".join(f"{number / total:.6g}" for number in numbers)


def _factors(entry: Mapping[str, Any]) -> str:
    numbers = _numbers(entry.get("experts") or [1], "the experts")
    return "all" if all(number == 1 for number in numbers) else ",".join(f"{number:g}" for number in numbers)


def _numbers(values: Any, what: str) -> list[float]:
    if not isinstance(values, list) or not 0 < len(values) <= 256:
        raise FeraError(f"{what}: there must be a number an expert; reload the page")
    if not all(isinstance(value, int | float) and abs(value) < 1e6 for value in values):
        raise FeraError(f"{what}: that is no number; reload the page")
    return [float(value) for value in values]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a file that may be growing; empty where there is none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return []
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue  # being written
        if isinstance(line, dict):
            found.append(line)
    return found


def _finals(folder: Path) -> dict[int, list[Path]]:
    """Finished pictures by number; of two, the base's has the longer name and comes last."""
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.glob("*.png")):
        if (match := _FINAL.match(path.name)) and not path.is_symlink():
            found.setdefault(int(match[1]), []).append(path)
    return {number: sorted(paths, key=lambda path: len(path.name)) for number, paths in found.items()}
