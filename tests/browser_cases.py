"""A page of `fera web` in a process of its own, and a real browser at it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from web_cases import wait_for

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed: apt-get install chromium"),
]
SHORT = {
    "train.steps": "40",
    "train.batch_size": "2",
    "train.logging_steps": "1",
    "train.checkpointing_steps": "10",
    "validation.steps": "10",
    "validation.num_inference_steps": "2",
    "validation.loss_steps": "10",
    "validation.loss_samples": "4",
    "train.report_to": "none",
}


@contextmanager
def serving(root: Path, **environment: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Address and process of a page of a folder, as a user has it; Ctrl-C must end it without a traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fera.cli", "web", str(root), "--port", str(port)]
    said = root / "page.txt"
    with said.open("wb") as output:
        page = subprocess.Popen(command, stderr=output, stdout=output, env=os.environ | environment)
    try:
        wait_for(lambda: b"Ctrl-C" in said.read_bytes() or page.poll() is not None, 120)
        yield f"http://127.0.0.1:{port}", page
        if page.poll() is None:
            page.send_signal(signal.SIGINT)
            assert page.wait(30) == 130
        assert b"Traceback" not in said.read_bytes()
    finally:
        if page.poll() is None:
            page.kill()
        page.wait()


@contextmanager
def opening(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """A function that opens pages; whatever the browser complains of is an error at the end."""
    contexts, complaints = [], []

    def open_(path: str, **options: Any) -> Page:
        context = browser.new_context(base_url=address, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: complaints.append(request.url) if address not in request.url else None)
        tab.goto(path)
        return tab

    yield open_
    for context in contexts:
        context.close()
    # An answer of 400 is told on the page; the browser notes it too.
    own = ("data:", "blob:", "Failed to load resource")
    assert [line for line in complaints if not line.startswith(own)] == []


def fill(tab: Page, values: dict[str, str]) -> None:
    """Fill fields in by name, those in closed parts of a form too."""
    for name, value in values.items():
        tab.eval_on_selector(
            f"[name='{name}']",
            "(field, value) => { field.value = value; field.dispatchEvent(new Event('input', {bubbles: true})) }",
            value,
        )


def drop(tab: Page, selector: str, files: list[Path]) -> None:
    """Drop files, as from a folder of the desktop."""
    encoded = [{"name": path.name, "bytes": list(path.read_bytes())} for path in files]
    transfer = tab.evaluate_handle(
        """files => {
            const all = new DataTransfer();
            for (const one of files) all.items.add(new File([new Uint8Array(one.bytes)], one.name));
            return all;
        }""",
        encoded,
    )
    tab.dispatch_event(selector, "drop", {"dataTransfer": transfer})


def played(tab: Page, selector: str) -> float:
    """Seconds of a video or sound that the browser has decoded to its end."""
    tab.eval_on_selector(selector, "one => { one.muted = true; one.loop = false; return one.play(); }")
    wait_for(lambda: tab.eval_on_selector(selector, "one => one.ended"), 30)
    seconds: float = tab.eval_on_selector(selector, "one => one.duration")
    return seconds
