"""The page in a real browser: a run of the emoji base is set up, watched, stopped and gone on with."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
from playwright.sync_api import expect, sync_playwright
from report_cases import write_run
from web_cases import wait_for, write_light_run

import fera.demo

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_sd_dir):
    root = tmp_path_factory.mktemp("page")
    fera.demo.unpack_style("twemoji", root / "runs" / "twemoji")
    write_run(tiny_sd_dir, root / "runs" / "twemoji" / "train", root / "runs" / "ink")
    write_light_run(root / "runs" / "a-run-with-a-name-that-takes-all-of-a-small-screen-and-more")
    return root


@pytest.fixture(scope="module")
def address(root):
    """A page of a process of its own, as a user has it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fera.cli", "web", str(root), "--port", str(port)]
    with (root / "page.txt").open("wb") as said:
        page = subprocess.Popen(command, stderr=said, stdout=said)
    wait_for(lambda: b"Ctrl-C" in (root / "page.txt").read_bytes() or page.poll() is not None, 120)
    yield f"http://127.0.0.1:{port}"
    page.send_signal(signal.SIGINT)
    assert page.wait(30) == 130
    assert b"Traceback" not in (root / "page.txt").read_bytes()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, address):
    """Opens the page; whatever the browser complains of fails the test."""
    contexts, complaints = [], []

    def open_(path, **options):
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
    assert [line for line in complaints if not line.startswith(("data:", "Failed to load resource"))] == []


def fill(tab, values):
    for name, value in values.items():
        tab.eval_on_selector(
            f"[name='{name}']",
            "(field, value) => { field.value = value; field.dispatchEvent(new Event('input', {bubbles: true})) }",
            value,
        )


def test_a_run_from_the_form_to_its_curves(tab, root):
    page = tab("/train")
    page.select_option("#preset", "emoji-style")
    page.get_by_role("button", name="Fill in").click()
    fill(page, {**SHORT, "output_dir": "runs/new"})
    expect(page.locator("#toml")).to_contain_text("steps = 40")
    expect(page.locator("#command")).to_have_text("fera train configs/new.toml")
    page.get_by_role("button", name="Start", exact=True).click()

    page.wait_for_url("**/run?name=runs%2Fnew")
    use = page.locator("svg[aria-label^='Use of the experts']")
    expect(use).to_be_visible(timeout=180_000)
    before = use.inner_html()
    wait_for(lambda: use.inner_html() != before, 60)  # it moves by itself
    expect(page.locator(".state")).to_have_text("running")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".state")).to_have_text("stopped", timeout=60_000)
    assert any((root / "runs" / "new" / "checkpoints").iterdir())

    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".state")).to_have_text("finished", timeout=180_000)
    slider = page.get_by_label("step of the samples")
    assert slider.get_attribute("aria-valuetext") == "step 40"
    slider.focus()
    page.keyboard.press("Home")
    expect(page.get_by_text("step 0", exact=True)).to_be_visible()
    page.get_by_role("button", name="Write a report").click()
    expect(page.get_by_role("link", name="Open the report")).to_be_visible(timeout=60_000)


def test_a_mistake_is_told_in_the_form_and_nothing_is_lost(tab, root):
    page = tab("/train")
    fill(page, {"base": "emoji", "output_dir": "../x", "data.train_data_dir": "runs/twemoji/train"})
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#problem")).to_contain_text("../x is outside of")
    assert page.input_value("[name=base]") == "emoji" and not (root / "configs" / "x.toml").exists()


def test_runs_are_chosen_and_compared_by_keyboard(tab):
    page = tab("/")
    for name in ("choose runs/ink", "choose runs/a-run-with-a-name-that-takes-all-of-a-small-screen-and-more"):
        page.get_by_label(name).focus()
        page.keyboard.press("Space")
    page.wait_for_timeout(2500)  # the list was looked at again meanwhile
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare?*")
    expect(page.get_by_role("heading", name="Side by side")).to_be_visible()
    expect(page.locator("svg[aria-label^='Held-out loss of']")).to_be_visible()


@pytest.mark.parametrize("path", ["/", "/train?preset=emoji-style", "/run?name=runs/ink", "/run?name=nothing"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_one_way(browser, address, path, scheme):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(address + path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()


def test_a_page_without_its_server_says_so(browser, root, tmp_path):
    command = [sys.executable, "-m", "fera.cli", "web", str(tmp_path), "--port", "0"]
    with (tmp_path / "page.txt").open("wb") as said:
        server = subprocess.Popen(command, stderr=said, stdout=said, env={**os.environ, "FERA_CACHE": str(tmp_path)})
    try:
        wait_for(lambda: b"Ctrl-C" in (tmp_path / "page.txt").read_bytes(), 120)
        page = browser.new_page()
        page.goto((tmp_path / "page.txt").read_text().split()[4])
        server.kill()
        expect(page.locator("#told")).to_contain_text("start fera web again; runs go on", timeout=20_000)
        page.close()
    finally:
        with suppress(ProcessLookupError):
            server.kill()
        server.wait()
