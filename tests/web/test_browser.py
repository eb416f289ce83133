"""The page in a real browser: a run of the emoji base is set up, watched, stopped and gone on with."""

import os
import subprocess
import sys
from contextlib import suppress

import pytest
from browser_cases import MARKS, SHORT, drop, fill
from PIL import Image
from playwright.sync_api import expect
from report_cases import write_run
from web_cases import wait_for, write_light_run

import fera.demo

PATHS = [
    *("/", "/train?preset=emoji-style", "/run?name=runs/ink", "/run?name=nothing", "/draw?run=runs/ink", "/takeout"),
    *("/data", "/data?folder=runs/twemoji/validation"),
]

pytestmark = MARKS


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_sd_dir):
    root = tmp_path_factory.mktemp("page")
    fera.demo.unpack_style("twemoji", root / "runs" / "twemoji")
    write_run(tiny_sd_dir, root / "runs" / "twemoji" / "train", root / "runs" / "ink")
    write_light_run(root / "runs" / "a-run-with-a-name-that-takes-all-of-a-small-screen-and-more")
    return root


def test_from_pictures_that_are_dropped_to_a_file_for_another_tool(tab, root):
    # Data: a new folder, pictures dropped in, a caption edited and saved.
    page = tab("/data")
    page.get_by_label("Folder", exact=True).fill("mine")
    page.get_by_role("button", name="Make a new one").click()
    page.wait_for_url("**/data?folder=mine")
    drop(page, "#drop", sorted((root / "runs" / "twemoji" / "test").glob("*.webp"))[:8])
    expect(page.get_by_text("8 of 8 taken")).to_be_visible(timeout=30_000)
    expect(page.locator("[data-name] textarea")).to_have_count(8)
    for card in page.locator("[data-name] textarea").all():
        card.fill("a picture")
        card.press("Tab")
    expect(page.locator("#unsaved")).to_have_text("8 not saved")
    page.locator("[data-name] textarea").first.fill("a bar chart")
    page.keyboard.press("Control+s")
    expect(page.locator("#told")).to_have_text("saved 8 captions")
    texts = sorted((root / "mine").glob("*.txt"))
    assert [path.read_text() for path in texts] == ["a bar chart\n", *["a picture\n"] * 7]
    page.get_by_role("button", name="Check each picture").click()
    expect(page.get_by_text("Training would take this folder.")).to_be_visible(timeout=60_000)

    # Train: the run's curves move by themselves; it stops, and goes on.
    page.get_by_role("link", name="Train on this folder").click()
    assert page.input_value("[name='data.train_data_dir']") == "mine"
    own = {"base": "emoji", "output_dir": "runs/new", "data.validation_fraction": "0.25", "adapter.num_experts": "3"}
    fill(page, {**SHORT, **own, "validation.prompts": "red heart", "train.learning_rate": "4e-3"})
    expect(page.locator("#toml")).to_contain_text("steps = 40")
    expect(page.locator("#command")).to_have_text("fera train configs/new.toml")
    expect(page.locator("#estimate")).to_contain_text("memory, without activations", timeout=180_000)
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url("**/run?name=runs%2Fnew")
    use = page.locator("svg[aria-label^='Use of the experts']")
    expect(use).to_be_visible(timeout=180_000)
    before = use.inner_html()
    wait_for(lambda: use.inner_html() != before, 60)
    expect(page.locator("svg[aria-label^='Energy by band']")).to_be_visible()
    expect(page.locator("svg[aria-label^='Gates along the noise']")).to_be_visible()
    expect(page.locator(".state")).to_have_text("running")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".state")).to_have_text("stopped", timeout=60_000)
    assert any((root / "runs" / "new" / "checkpoints").iterdir())
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".state")).to_have_text("finished", timeout=240_000)
    slider = page.get_by_label("step of the samples")
    assert slider.get_attribute("aria-valuetext") == "step 40"
    slider.focus()
    page.keyboard.press("Home")
    expect(page.get_by_text("step 0", exact=True)).to_be_visible()
    page.get_by_role("button", name="Write a report").click()
    expect(page.get_by_role("link", name="Open the report")).to_be_visible(timeout=120_000)

    # Draw: an expert's slider moved by keyboard, the gate at each step under the picture.
    page.get_by_role("link", name="Draw with it").click()
    page.get_by_label("Prompts").fill("red heart")
    page.get_by_label("Steps", exact=True).fill("4")
    expert = page.get_by_label("factor of expert 2")
    expert.focus()
    page.keyboard.press("Home")
    expect(page.locator("#command")).to_contain_text("--experts=1,0,1")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#shown-state")).to_have_text("done", timeout=240_000)
    gates = page.locator(".gates svg")
    assert "expert 2 0.00" in gates.get_attribute("aria-label")
    steps = page.get_by_label("step of picture 1")
    assert steps.get_attribute("max") == "4"
    finished = page.locator(".pair img").last.get_attribute("src")
    steps.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".pair img").last.get_attribute("src") != finished
    assert page.locator(".pair img").count() == 2  # the base beside it

    # What is dropped is back in the form.
    page.goto("/draw")
    drop(page, "#draw", [next((root / "drawings").glob("*/000-red-heart.png"))])
    expect(page.locator("#command")).to_contain_text("--experts=1,0,1")
    assert page.get_by_label("Prompts").input_value() == "red heart"
    assert page.get_by_label("Steps", exact=True).input_value() == "4"

    # Take out: a plain LoRA, with how far it is from the routed adapter.
    page.goto("/takeout?run=runs/new")
    form = page.locator("form[data-job=export]")
    form.get_by_label("Base").fill("emoji")
    form.get_by_label("Prompts to measure with").fill("green tree")
    form.get_by_role("button", name="Export").click()
    expect(page.locator("#jobs p[role=status]").first).to_have_text("done", timeout=240_000)
    expect(page.locator("#jobs pre").first).to_contain_text("of what the adapter changes")
    assert (root / "exports" / "new-comfyui.safetensors").is_file()


def test_a_mask_is_painted_by_keyboard_and_pointer(tab, root):
    page = tab("/data?folder=runs/twemoji/validation")
    page.locator("[data-mask]").first.click()
    canvas = page.locator("#mask-canvas")
    expect(canvas).to_be_visible()
    canvas.focus()
    page.keyboard.press("Space")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 5)
    page.mouse.up()
    page.get_by_role("button", name="Save", exact=True).last.click()
    expect(page.locator("#told")).to_contain_text("saved as runs/twemoji/validation-masks/")
    (mask,) = (root / "runs" / "twemoji" / "validation-masks").rglob("*.png")
    with Image.open(mask) as painted:
        assert painted.getextrema() == (0, 255)
        assert painted.getpixel((painted.width // 2, painted.height // 2)) == 0


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


@pytest.mark.parametrize("path", PATHS)
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
