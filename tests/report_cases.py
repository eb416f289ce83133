"""Run folders to report on, written without training, and a reader that holds a page to its rules."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from adapter_cases import write_adapter
from PIL import Image
from training_cases import run_config

from fera.training import to_toml

VOID = {"meta", "img", "br", "link", "input", "hr"}


def log_records(steps: int = 40, gates: list[float] | None = None, every: int = 10) -> list[dict[str, Any]]:
    """A log whose loss falls from 1.5 to 0.8; without a gate where `gates` is None."""
    records: list[dict[str, Any]] = [{"step": 0, "held_out_loss": 1.5}]
    for step in range(every, steps + 1, every):
        record = {"step": step, "loss": 1.5 - 0.7 * step / steps, "lr": 1e-3, "router_lr": 1e-4}
        routed = {} if gates is None else {"gate_entropy": 0.9, "gates": gates}
        records.append({**record, **routed, "samples_per_second": 10.0})
    return [*records, {"step": steps, "held_out_loss": 0.8}]


def write_run(base: Path, pictures: Path, folder: Path, *, finished: bool = True, **settings: Any) -> Path:
    """What a routed run of 40 steps leaves, its adapter with random weights."""
    validation = {"prompts": ["a red rocket", "a blue house"], "num_inference_steps": 2, "guidance_scale": 1.0}
    config = run_config(base, pictures, folder, **{"train": {"steps": 40}, "validation": validation} | settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(to_toml(config), encoding="utf-8")
    write_log(folder, log_records(gates=[0.2, 0.5, 0.3]))
    (folder / "samples").mkdir()
    for step, color in ((0, "white"), (40, "black")):
        Image.new("RGB", (32, 16), color).save(folder / "samples" / f"step-{step:06d}.png")
    if finished:
        write_adapter("sd", folder / "adapter")
        summary = {"steps": 40, "samples": 80, "training_pictures": 4, "parameters": 1234, "training_seconds": 65.0}
        versions = {"fera": "0.1.0", "torch": "2.0"}
        (folder / "summary.json").write_text(json.dumps({**summary, "base": str(base), "versions": versions}))
    return folder


def write_log(folder: Path, records: list[dict[str, Any]]) -> None:
    """Replace a run's log."""
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


class Page(HTMLParser):
    """An HTML page: its text, its elements, and whether they are balanced.

    Args:
        html: the page.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute of <{tag}> twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        """What a reader reads."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of each element of a name."""
        return [attributes for name, attributes in self.elements if name == tag]


def check_rules(html: str) -> Page:
    """Hold a page to its rules: balanced, alone, accessible, with no script but its own."""
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>") and page.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {tag for tag, _ in page.elements} <= ALLOWED
    assert len(page.all("script")) == len(page.all("style")) == len(page.all("h1")) == 1
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("style", "srcdoc") for name in attributes), tag
        for name in ("src", "href", "action", "data", "poster", "xlink:href"):
            assert attributes.get(name, "data:image/").startswith("data:image/"), (tag, name)
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert all(attributes["aria-label"] for attributes in page.all("svg"))
    return page


ALLOWED = set(
    "html head meta title style body header main section footer script h1 h2 h3 p b span code ul li dl dt dd div "
    "figure figcaption img svg g path text circle table thead tbody tr th td details summary".split()
)
