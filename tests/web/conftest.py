"""What pages are made over: a folder with a run and three pictures, its queue, and a browser at it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient
from web_cases import make_client, write_light_run

from fera.web.jobs import Queue


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A run, and a folder of pictures with captions."""
    root = tmp_path / "root"
    data = root / "data"
    data.mkdir(parents=True)
    write_light_run(root / "runs" / "a")
    for number, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (40, 20), (number, 200, 0)).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"a picture {name}\n")
    return root


@pytest.fixture
def queue(tmp_path: Path, root: Path) -> Iterator[Queue]:
    """The queue of that folder, which starts what it is given."""
    queue = Queue(root, tmp_path / "kept")
    yield queue
    queue.close()


@pytest.fixture
def client(root: Path, queue: Queue) -> TestClient:
    """A browser at the page."""
    return make_client(root, queue)
