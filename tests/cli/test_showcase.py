"""`fera demo`, on a tiny base in the place of the emoji base."""

import json
from pathlib import Path

import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

import fera
from fera.cli import showcase
from fera.cli.main import main
from fera.demo import STYLES, base_path, unpack_style
from fera.pipelines.base import load_base
from fera.training import load_config
from fera.training.trained.kinds import adapter_of


@pytest.fixture(autouse=True)
def few_steps(tiny_sd_dir, monkeypatch):
    monkeypatch.setattr("fera.pipelines.base.base_path", lambda: tiny_sd_dir)
    monkeypatch.setattr(showcase, "PROMPTS", showcase.PROMPTS[:2])
    draw = showcase.generate
    monkeypatch.setattr(
        showcase, "generate", lambda pipe, prompts, **kw: draw(pipe, prompts, num_inference_steps=2, **kw)
    )

    def unpack_few(style, folder):
        unpack_style(style, folder)
        for split in ("train", "test"):
            metadata = folder / split / "metadata.jsonl"
            rows = metadata.read_text(encoding="utf-8").splitlines()
            kept = [*rows[:4], *(row for row in rows[4:] if json.loads(row)["text"] in showcase.PROMPTS)]
            metadata.write_text("\n".join(kept), encoding="utf-8")
            for row in rows:
                if row not in kept:
                    (folder / split / json.loads(row)["file_name"]).unlink(missing_ok=True)

    monkeypatch.setattr(showcase, "unpack_style", unpack_few)


def run(folder, *arguments):
    return main(["demo", "--steps", "2", "--output", str(folder), *arguments])


def test_a_demo_leaves_what_it_promises_and_runs_again(tmp_path, capfd):
    assert run(tmp_path / "demo", "--style", "twemoji") == 0
    out = capfd.readouterr().out
    assert "held-out loss" in out and str(tmp_path / "demo" / "grid.png") in "".join(out.split())
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"adapter", "config.toml", "log.jsonl", "summary.json", "grid.png", "gates.png", "gates.csv"} <= names
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert summary["style"] == "twemoji" and summary["steps"] == 2
    assert summary["held_out_loss_before"] > 0 and summary["held_out_loss_after"] > 0
    assert summary["total_seconds"] >= summary["drawing_seconds"] > 0
    with Image.open(tmp_path / "demo" / "grid.png") as grid:
        assert grid.height > 3 * 128
    fera.load_adapter(load_base("emoji"), tmp_path / "demo")

    (tmp_path / "demo" / "grid.png").unlink()
    assert run(tmp_path / "demo", "--style", "openmoji") == 0, "a demo replaces a demo"
    assert (tmp_path / "demo" / "grid.png").is_file()
    assert json.loads((tmp_path / "demo" / "summary.json").read_text())["style"] == "openmoji"
    assert load_config(tmp_path / "demo" / "config.toml").data.train_data_dir.parent.name == "openmoji"


def test_a_run_of_yours_is_not_replaced(tmp_path, capfd):
    run_folder = tmp_path / "mine"
    (run_folder / "adapter").mkdir(parents=True)
    (run_folder / "config.toml").write_text('base = "emoji"\noutput_dir = "x"\n[data]\ntrain_data_dir = "pictures"\n')
    assert run(run_folder) == 2
    assert "already holds a run" in " ".join(capfd.readouterr().err.split())
    assert sorted(path.name for path in run_folder.iterdir()) == ["adapter", "config.toml"]


@pytest.mark.parametrize("arguments", [["--style", "oil-painting"], ["--steps", "0"], ["--resume", "--overwrite"]])
def test_one_clear_error(tmp_path, capfd, arguments):
    assert run(tmp_path / "demo", *arguments) == 2
    assert capfd.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("style", STYLES)
def test_the_prompts_are_names_no_adapter_has_seen(style, tmp_path):
    def captions(split):
        lines = (folder / split / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        return {json.loads(line)["text"] for line in lines}

    folder = unpack_style(style, tmp_path)
    prompts = {"cat", *showcase.PROMPTS}
    assert not prompts & captions("train")
    assert prompts <= captions("test")


def test_the_default_is_a_style_that_is_shipped():
    assert showcase.DEFAULT_STYLE in STYLES


def test_the_adapter_is_as_small_as_the_readme_says(tmp_path):
    unet = UNet2DConditionModel.from_pretrained(base_path(), subfolder="unet")
    adapter_of(showcase.demo_config(tmp_path, "twemoji", 1).adapter).add(unet)
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"{trained:,}" in " ".join(readme.split())
    assert trained < 216_000 + 1_000  # of the layers, and of the router
