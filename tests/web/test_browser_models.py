"""Bases of other families in a real browser: FLUX and Qwen-Image, a base of videos, a base of sounds, all tiny."""

import pytest
from adapter_cases import add_adapter
from browser_cases import MARKS, SHORT, drop, fill, played
from playwright.sync_api import expect
from sound_cases import sound_folder
from trained_cases import CASES

import fera

pytestmark = MARKS
BY_NAME = {case.name: case for case in CASES}
DRAWN = ("flux", "qwen-image", "wan")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Bases with random weights, and runs with an adapter of each."""
    root = tmp_path_factory.mktemp("models")
    for name in (*DRAWN, "ace-step"):
        pipe = BY_NAME[name].pipeline()
        pipe.save_pretrained(root / "bases" / name)
        if name in DRAWN:
            fera.save_adapter(add_adapter(pipe), root / "adapters" / name)
    sound_folder(root / "bells", rate=8000, seconds=0.8)
    return root


def start_drawing(page, name, **more):
    page.get_by_label("Prompts").fill("a red rocket")
    page.get_by_label("Base", exact=True).fill(f"bases/{name}")
    page.get_by_role("button", name="Add an adapter").click()
    page.get_by_label("Run, folder, file or Hub id").fill(f"adapters/{name}")
    page.get_by_label("Run, folder, file or Hub id").press("Tab")
    expect(page.get_by_label("factor of expert 2")).to_be_visible()
    fill(page, {"steps": "4", "guidance_scale": "1", **more})
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#shown-state")).to_have_text("done", timeout=240_000)


@pytest.mark.parametrize("name", DRAWN)
def test_the_gate_is_under_the_picture_at_each_step(tab, name):
    case = BY_NAME[name]
    page = tab("/draw")
    clip = {"num_frames": str(case.frames)} if case.frames else {}
    start_drawing(page, name, width=str(case.width), height=str(case.height), **clip)
    steps = page.get_by_label("step of picture 1")
    assert steps.get_attribute("max") == "4" and page.locator(".pair > div").count() == 2
    gates, shown = set(), set()
    steps.focus()
    page.keyboard.press("Home")
    for step in range(1, 5):
        expect(page.locator("figcaption")).to_contain_text(f"step {step} of 4")
        gates.add(page.locator(".gates svg").get_attribute("aria-label"))
        picture = page.locator(".pair img").last
        if step < 4:
            expect(picture).to_be_visible()
            assert picture.evaluate("one => one.decode().then(() => one.naturalWidth)") == case.width
        shown.add(picture.get_attribute("src"))
        page.keyboard.press("ArrowRight")
    assert len(gates) > 1 and len(shown) == 4
    assert all("expert 3" in one for one in gates)
    if case.frames:
        expect(page.locator("video").first).to_be_visible()
        assert page.locator("video").count() == 2
        assert played(page, "video") == pytest.approx(case.frames / 16, abs=0.1)
    else:
        expect(page.locator(".pair img").last).to_be_visible()
    # Opened again, the form has what the drawing was made with; a button has it back later.
    page.reload()
    expect(page.get_by_label("Prompts")).to_have_value("a red rocket", timeout=20_000)
    expect(page.get_by_label("Run, folder, file or Hub id")).to_have_value(f"adapters/{name}")
    assert page.get_by_label("Width").input_value() == str(case.width)
    page.get_by_label("Prompts").fill("another")
    page.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Prompts")).to_have_value("a red rocket")


def test_a_sound_is_trained_previewed_drawn_and_heard(tab, root):
    # Data: what is dropped is listed and played.
    page = tab("/data")
    page.get_by_label("Folder", exact=True).fill("mine")
    page.get_by_role("button", name="Make a new one").click()
    page.wait_for_url("**/data?folder=mine")
    drop(page, "#drop", sorted((root / "bells").iterdir()))
    expect(page.get_by_text("8 of 8 taken")).to_be_visible(timeout=30_000)
    expect(page.locator("[data-name] audio")).to_have_count(4)
    assert played(page, "[data-name='a.wav'] audio") == pytest.approx(0.8, abs=0.01)

    # Train: the samples of a run are heard.
    page.get_by_role("link", name="Train on this folder").click()
    own = {"base": "bases/ace-step"} | {
        "output_dir": "runs/bells",
        "data.seconds": "0.8",
        "validation.prompts": "a bell",
    }
    few = {"train.steps": "4", "train.checkpointing_steps": "4", "validation.steps": "2"}
    page.get_by_label("estimate while the form is filled in").uncheck()
    fill(page, {**SHORT, **few, **own})
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_url("**/run?name=runs%2Fbells")
    expect(page.locator(".state")).to_have_text("finished", timeout=240_000)
    expect(page.locator("figure[data-step='4'] audio")).to_be_visible(timeout=10_000)
    assert played(page, "figure[data-step='4'] audio") > 0.5

    # Draw: heard under its spectrogram, with the gate of each step.
    page.get_by_role("link", name="Draw with it").click()
    page.get_by_label("Prompts").fill("a bell")
    fill(page, {"steps": "3", "guidance_scale": "1", "seconds": "0.8"})
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator("#shown-state")).to_have_text("done", timeout=240_000)
    expect(page.locator(".pair audio")).to_have_count(2)
    assert played(page, ".pair audio") > 0.5
    assert page.get_by_label("step of picture 1").get_attribute("max") == "3"
    assert "expert 1" in page.locator(".gates svg").get_attribute("aria-label")
