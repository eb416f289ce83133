"""A page over a folder of runs, asked as a browser asks it."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from report_cases import Page, log_records
from starlette.testclient import TestClient

from fera.web.app import make_app
from fera.web.guard import own_names
from fera.web.jobs import Queue
from fera.web.places import Places

ADDRESS = "http://127.0.0.1:7373"
# Headers of a file that is sent.
UPLOAD = {"Content-Type": "application/octet-stream", "Origin": ADDRESS}
# What stands for `fera` where only the process matters: it says what it is told, and may wait or fail.
WORDS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print(*sys.argv[1:], flush=True)
if "wait" in sys.argv:
    time.sleep(60)
if "fail" in sys.argv:
    print("error: it was told to fail")
    sys.exit(2)
"""


def make_client(root: Path, queue: Queue, *, host: str = "127.0.0.1", token: str | None = None) -> TestClient:
    """A browser at the page; its queue moves only when it is told to."""
    app = make_app(Places(root), queue, hosts=own_names(host), token=token)
    return TestClient(app, base_url=ADDRESS, raise_server_exceptions=True)


def do(client: TestClient, what: str, **body: Any) -> Any:
    """Press a button."""
    return client.post(f"/do/{what}", json=body, headers={"Origin": ADDRESS})


class Editor:
    """A page that edits captions.

    Args:
        client: the browser.
        folder: whose captions.
    """

    def __init__(self, client: TestClient, folder: str = "data") -> None:
        self.client, self.folder = client, folder
        self.look()

    def look(self, **query: Any) -> Page:
        """Read the list again."""
        answer = self.client.get("/data/rows", params={"folder": self.folder, **query})
        assert answer.status_code == 200
        self.shown = Page(answer.text)
        self.version = int(next(one["data-version"] for one in self.shown.all("div") if "data-version" in one))
        return self.shown

    def do(self, what: str, **more: Any) -> Any:
        """Press a button; what it answers."""
        answer = do(self.client, f"data-{what}", folder=self.folder, version=self.version, **more)
        if answer.status_code == 200:
            self.version = answer.json().get("version", self.version)
        return answer.json()


def png(size: tuple[int, int] = (40, 20), colour: int = 255, mode: str = "L") -> bytes:
    """A picture of one colour."""
    held = io.BytesIO()
    Image.new(mode, size, colour).save(held, "PNG")
    return held.getvalue()


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def write_light_run(folder: Path, *, steps: int = 40, finished: bool = True, **log: Any) -> Path:
    """A run's folder without an adapter."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.toml").write_text(
        f'base = "emoji"\noutput_dir = "{folder.name}"\n[data]\ntrain_data_dir = "data"\n[train]\nsteps = {steps}\n'
    )
    records = log_records(**{"steps": steps, "gates": [0.2, 0.5, 0.3]} | log)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"steps": steps}))
    return folder


def wait_for(what: Callable[[], Any], seconds: float = 30) -> Any:
    """What comes true within some time."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found
