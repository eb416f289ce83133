"""What pages are made over: a folder with a run and three pictures, its queue, and a browser at it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from starlette.testclient import TestClient
from web_cases import make_client, write_light_run

from fera.web.jobs import Queue

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    """A page of a process of its own; `root` is then one of the module's."""
    from browser_cases import serving

    with serving(root) as (address, _process):
        yield address


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """A real one, without a window."""
    from browser_cases import BROWSER
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: "Browser", address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; whatever the browser complains of fails the test."""
    from browser_cases import opening

    with opening(browser, address) as open_:
        yield open_
