"""`fera generate`: files, names, settings, and what is refused before anything is loaded."""

import csv
import json

import numpy as np
import pytest
from adapter_cases import add_adapter
from diffusers import StableDiffusionPipeline
from PIL import Image

import fera
from fera.cli import demo as demo_command
from fera.cli.main import main
from fera.generation.drawing import parse_adapter, read_prompts


@pytest.fixture(scope="module")
def runs(tiny_sd_dir, tmp_path_factory):
    """Two run folders whose adapters name the tiny base."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("ink", "neon")):
        pipe = add_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir), seed=seed)
        fera.save_adapter(pipe, folder / name / "adapter")
    return folder


@pytest.fixture
def generate(tmp_path, capfd):
    """Runs `fera generate` into `out`; returns exit code, standard output and error."""

    def run(*arguments, output="out"):
        capfd.readouterr()
        code = main(["generate", *map(str, arguments), "--steps", "2", "--output", str(tmp_path / output)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_adapter_brings_its_base(generate, runs, tmp_path):
    code, out, err = generate("a red rocket", "a green tree", "--adapter", runs / "ink")
    assert code == 0, err
    assert names(tmp_path / "out") == ["000-a-red-rocket.png", "001-a-green-tree.png", "generation.json", "grid.png"]
    assert out.splitlines()[0] == str(tmp_path / "out" / "grid.png")
    assert set(out.splitlines()) == {str(path) for path in (tmp_path / "out").iterdir()}
    assert "adapter ink: " in err and "Loading" not in err


def test_everything_at_once(generate, runs, tmp_path, tiny_sd_dir):
    code, _, err = generate(
        "a red rocket",
        "--base",
        tiny_sd_dir,
        "--adapter",
        f"{runs / 'ink'}=0.7",
        "--adapter",
        f"{runs / 'neon' / 'adapter' / 'adapter_model.safetensors'}=-0.3",
        "--compare-base",
        "--trace",
        *("--seed", "11", "--guidance-scale", "3", "--negative-prompt", "the sun", "--height", "24", "--width", "16"),
    )
    assert code == 0, err
    folder = tmp_path / "out"
    assert names(folder) == [
        "000-a-red-rocket-base.png",
        "000-a-red-rocket.png",
        "gates.csv",
        "gates.png",
        "generation.json",
        "grid.png",
    ]
    assert pixels(folder / "000-a-red-rocket.png").shape == (24, 16, 3)
    assert not np.array_equal(pixels(folder / "000-a-red-rocket.png"), pixels(folder / "000-a-red-rocket-base.png"))
    with Image.open(folder / "000-a-red-rocket.png") as image:
        text = image.text
    assert (text["prompt"], text["seed"], text["steps"], text["guidance_scale"]) == ("a red rocket", "11", "2", "3.0")
    assert text["negative_prompt"] == "the sun" and text["fera"] == fera.__version__
    assert "ink=0.7" in text["adapters"] and "=-0.3" in text["adapters"]
    with Image.open(folder / "000-a-red-rocket-base.png") as image:
        assert "adapters" not in image.text
    record = json.loads((folder / "generation.json").read_text())
    assert [adapter["name"] for adapter in record["adapters"]] == ["ink", "neon"]
    assert record["images"] == [{"prompt": "a red rocket", "seed": 11, "file": "000-a-red-rocket.png"}]
    rows = list(csv.DictReader((folder / "gates.csv").open()))
    assert {row["adapter"] for row in rows} == {"ink", "neon"}
    assert {row["step"] for row in rows} == {"1", "2"}


def test_comparing_does_not_change_the_adapted_image(generate, runs, tmp_path):
    for output, *options in (("a",), ("b", "--compare-base"), ("c", "--trace")):
        assert generate("a red rocket", "--adapter", f"{runs / 'ink'}=0.6", *options, output=output)[0] == 0
    images = [pixels(tmp_path / name / "000-a-red-rocket.png") for name in "abc"]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


def test_adapters_that_start_late_are_neither_the_base_nor_the_adapted(generate, runs, tmp_path):
    ink = ("--adapter", f"{runs / 'ink'}=3", "--compare-base", "--trace")
    assert generate("a red rocket", *ink, output="whole")[0] == 0
    assert generate("a red rocket", *ink, "--adapter-start", "0.5", output="late")[0] == 0
    whole, late = tmp_path / "whole", tmp_path / "late"
    picture, base = "000-a-red-rocket.png", "000-a-red-rocket-base.png"
    assert np.array_equal(pixels(whole / base), pixels(late / base))
    assert not np.array_equal(pixels(late / picture), pixels(late / base))
    assert not np.array_equal(pixels(late / picture), pixels(whole / picture))
    assert json.loads((late / "generation.json").read_text())["adapter_start"] == 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--adapter-start", "1"), "must lie in"), (("--adapter-start", "0.2"), "--adapter-start needs --adapter")],
)
def test_a_late_start_that_cannot_be(generate, tiny_sd_dir, options, message):
    code, _, err = generate("a red rocket", "--base", tiny_sd_dir, *options)
    assert code == 2 and message in " ".join(err.split())


@pytest.mark.parametrize("offload", ["blocks", "disk"])
def test_blocks_that_wait_draw_the_same(generate, runs, tmp_path, offload):
    options = ["a red rocket", "--adapter", runs / "ink"]
    assert generate(*options, output="plain")[0] == 0
    assert generate(*options, "--offload", offload, output=offload)[0] == 0
    images = [pixels(tmp_path / name / "000-a-red-rocket.png") for name in ("plain", offload)]
    assert np.array_equal(*images)


def test_files_in_another_precision_are_named_with_the_flag(generate, tiny_sd_dir):
    code, _, err = generate("a red rocket", "--base", tiny_sd_dir, "--offload", "disk", "--precision", "bf16")
    assert code == 2 and "--offload is disk, but no file in" in err and "(there it is float32)" in err


def test_a_base_alone(generate, tiny_sd_dir, tmp_path):
    assert generate("a red rocket", "--base", tiny_sd_dir)[0] == 0
    assert (tmp_path / "out" / "000-a-red-rocket.png").is_file()


def test_batches_save_as_they_go_and_do_not_change_images(generate, tiny_sd_dir, tmp_path):
    prompts = ["a red rocket", "a green tree", "a blue house"]
    assert generate(*prompts, "--base", tiny_sd_dir, "--batch-size", 2, output="two")[0] == 0
    assert generate(*prompts, "--base", tiny_sd_dir, output="all")[0] == 0
    for name in names(tmp_path / "all"):
        if name.startswith("0"):
            left, right = (pixels(tmp_path / folder / name).astype(int) for folder in ("two", "all"))
            assert np.abs(left - right).max() <= 1


def test_prompts_from_a_file(generate, tiny_sd_dir, tmp_path):
    (tmp_path / "prompts.txt").write_text("\ufeffa red rocket\n\n  a green tree \r\n", encoding="utf-8")
    assert generate("a blue house", "--prompt-file", tmp_path / "prompts.txt", "--base", tiny_sd_dir)[0] == 0
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert [image["prompt"] for image in record["images"]] == ["a blue house", "a red rocket", "a green tree"]
    assert read_prompts([], tmp_path / "prompts.txt") == ["a red rocket", "a green tree"]
    (tmp_path / "prompts.txt").write_bytes("a red\u2028rocket\r\na \x0btree\r".encode())
    assert read_prompts([], tmp_path / "prompts.txt") == ["a red\u2028rocket", "a \x0btree"]


def test_equal_and_odd_prompts_stay_in_the_folder(generate, tiny_sd_dir, tmp_path):
    assert generate("../../x", "a", "a", "/", "--base", tiny_sd_dir)[0] == 0
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out")[:4] == ["000-x.png", "001-a.png", "002-a.png", "003.png"]


def test_nothing_is_replaced_unasked(generate, tiny_sd_dir, tmp_path):
    assert generate("a red rocket", "--base", tiny_sd_dir)[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    code, _, err = generate("a red rocket", "--base", tiny_sd_dir, "--seed", 1)
    assert code == 2
    assert "already holds grid.png, 000-a-red-rocket.png, generation.json" in " ".join(err.split())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert generate("a red rocket", "--base", tiny_sd_dir, "--seed", 1, "--overwrite")[0] == 0
    assert (tmp_path / "out" / "000-a-red-rocket.png").read_bytes() != before["000-a-red-rocket.png"]


def test_the_emoji_base_by_name(generate, tiny_sd_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("fera.pipelines.base.base_path", lambda: tiny_sd_dir)
    for output, *options in (("named", "--base", "emoji"), ("default",)):
        assert generate("a red rocket", *options, output=output)[0] == 0
        assert json.loads((tmp_path / output / "generation.json").read_text())["base"] == "emoji"


def test_an_adapter_remembers_the_emoji_base_by_name(tiny_sd_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("fera.pipelines.base.base_path", lambda: tiny_sd_dir)
    from fera.adapters.file import open_adapter
    from fera.pipelines.base import load_base

    fera.save_adapter(add_adapter(load_base("emoji")), tmp_path / "out")
    assert open_adapter(tmp_path / "out").config.base_model_name_or_path == "emoji"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], 'nothing to draw: give a prompt ("a red heart") or --prompt-file'),
        (["x", "--prompt-file", "gone.txt"], "prompt file gone.txt cannot be read: No such file or directory"),
        (["x", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["x", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["x", "--guidance-scale", "nan"], "--guidance-scale must be at least 0, got nan"),
        (["x", "--width", "-8"], "--width must be at least 8, got -8"),
        (["x", "--steps", "many"], "argument --steps: invalid int value: 'many'"),
        (["x", "--guidance", "2"], "unknown option --guidance; did you mean --guidance-scale?"),
        (["x", "--trace"], "--trace needs --adapter"),
        (["x", "--compare-base"], "--compare-base needs --adapter"),
        (["x", "--adapter", "gone"], "no adapter at gone: there is no such file or folder"),
        (["x", "--adapter", "gone=much"], "--adapter gone=much: the weight 'much' is not a number"),
        (["x", "--adapter", "gone=inf"], "--adapter gone=inf: the weight must be finite"),
        (["x", "--base", "gone"], "base 'gone' does not exist"),
    ],
)
def test_one_clear_error(capfd, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *arguments]) == 2
    err = " ".join(capfd.readouterr().err.split())
    assert err.startswith("error: ") and message in err
    assert [path for path in tmp_path.rglob("*.*")] == []


def test_a_base_that_is_gone_says_what_to_do(generate, runs, tmp_path):
    from adapter_cases import make_pipeline

    pipe = add_adapter(make_pipeline("sd"))
    pipe.register_to_config(_name_or_path="/once/upon/a/time")
    fera.save_adapter(pipe, tmp_path / "old")
    code, _, err = generate("x", "--adapter", tmp_path / "old")
    assert code == 2 and "The adapter names this base; where you have it elsewhere, give --base" in " ".join(
        err.split()
    )


def test_an_adapter_for_another_base(generate, tiny_sd3_dir, runs):
    code, _, err = generate("x", "--base", tiny_sd3_dir, "--adapter", runs / "ink")
    assert code == 2 and "was trained on a UNet2DConditionModel" in err


def test_an_output_that_is_a_file(generate, tiny_sd_dir, tmp_path):
    (tmp_path / "taken").write_text("mine")
    code, _, err = generate("x", "--base", tiny_sd_dir, output="taken")
    assert code == 2 and "cannot write to" in err
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_device_that_is_not_there(generate, tiny_sd_dir):
    code, _, err = generate("x", "--base", tiny_sd_dir, "--device", "cuda:99")
    assert code == 2 and "--device cuda:99" in err


def test_weights_and_paths_with_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.1").mkdir()
    assert parse_adapter("lr=0.1") == ("lr=0.1", 1.0)
    assert parse_adapter("lr=0.1=0.5") == ("lr=0.1", 0.5)
    assert parse_adapter("someone/ink") == ("someone/ink", 1.0)
    assert parse_adapter("someone/ink=-1") == ("someone/ink", -1.0)


def test_the_demos_help_names_its_defaults():
    import argparse

    from fera.cli.showcase import DEFAULT_STEPS, DEFAULT_STYLE

    parser = argparse.ArgumentParser()
    demo_command.add_arguments(parser)
    assert f"({DEFAULT_STYLE})" in parser.format_help().replace("\n", " ").replace("  ", "")
    assert f"({DEFAULT_STEPS})" in parser.format_help()
