"""`fera analyze`: files, words, settings, and what is refused."""

import csv
import json

import numpy as np
import pytest
from adapter_cases import add_adapter
from diffusers import StableDiffusionPipeline
from PIL import Image

import fera
from fera.cli.main import main
from fera.traces.gates import read_trace


@pytest.fixture(scope="module")
def ink(tiny_sd_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ink"
    fera.save_adapter(add_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir), num_bands=4), folder)
    return folder


@pytest.fixture
def analyze(tmp_path, capfd):
    """Runs `fera analyze` into `out`; returns exit code, standard output and error."""

    def run(*arguments, output="out"):
        capfd.readouterr()
        code = main(["analyze", *map(str, arguments), "--steps", "2", "--output", str(tmp_path / output)])
        captured = capfd.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_everything_at_once(analyze, ink, image_folder, tmp_path):
    code, out, err = analyze(
        *("--adapter", f"{ink}=0.7", "--prompts", "a red rocket", "a green tree", "--data", image_folder),
        *("--levels", 2, "--pictures", 3, "--guidance-scale", 3, "--batch-size", 1),
    )
    assert code == 0, err
    folder = tmp_path / "out"
    assert names(folder) == [
        "analysis.json",
        "analysis.md",
        "energies.csv",
        "energies.png",
        "experts-weights.csv",
        "experts-weights.png",
        "experts.png",
        "gates-by-picture.csv",
        "gates.csv",
        "gates.png",
        "reconstruction.csv",
        "reconstruction.png",
    ]
    numbers = json.loads((folder / "analysis.json").read_text())
    assert numbers["settings"]["weight"] == 0.7 and numbers["settings"]["num_bands"] == 4
    assert [entry["model"] for entry in numbers["energies"]] == ["base", "adapted"]
    assert np.shape(numbers["energies"][1]["signals"]["clean"]["share"]["high"]) == (2, 4)
    assert np.shape(numbers["reconstruction"][0]["relative_error"]) == (2, 4)
    assert sum(numbers["gates"][0]["use"]) == pytest.approx(1)
    rows = list(csv.DictReader((folder / "gates-by-picture.csv").open()))
    assert {row["picture"] for row in rows} == {"1", "2"} and len(rows) == 2 * 2 * (3 + 4)
    # The table is a trace that `fera export` reads.
    assert read_trace(folder / "gates.csv").gates.shape == (2, 3)
    page = (folder / "analysis.md").read_text()
    for sentences in numbers["words"].values():
        for sentence in sentences:
            assert sentence in out and sentence in page
    for path in folder.glob("*.png"):
        assert str(path) in out and f"({path.name})" in page
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(10_000_000)) > 10


def test_a_base_alone_has_energies_only(analyze, tiny_sd_dir, tmp_path):
    code, out, err = analyze("--base", tiny_sd_dir, "--prompts", "a red rocket", "--num-bands", 2, "--kappa", 0.1)
    assert code == 0, err
    assert names(tmp_path / "out") == ["analysis.json", "analysis.md", "energies.csv", "energies.png"]
    numbers = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert (numbers["settings"]["num_bands"], numbers["settings"]["kappa"]) == (2, 0.1)
    assert "adapted" not in out


def test_pictures_alone(analyze, ink, image_folder, tmp_path):
    code, _, err = analyze("--adapter", ink, "--data", image_folder, "--levels", 2, "--pictures", 2)
    assert code == 0, err
    assert {"reconstruction.png", "experts-weights.png"} <= set(names(tmp_path / "out"))
    assert "energies.png" not in names(tmp_path / "out")


def test_nothing_is_replaced_unasked_and_no_old_file_stays(analyze, ink, tiny_sd_dir, tmp_path):
    arguments = ("--adapter", ink, "--prompts", "a red rocket", "--no-experts")
    assert analyze(*arguments)[0] == 0
    assert "experts.png" not in names(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").touch()
    code, _, err = analyze(*arguments)
    assert code == 2 and "already holds analysis.json, analysis.md, energies.csv …" in err
    assert analyze("--base", tiny_sd_dir, "--prompts", "a red rocket", "--overwrite")[0] == 0
    assert names(tmp_path / "out") == ["analysis.json", "analysis.md", "energies.csv", "energies.png", "notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to analyze: give --prompts"),
        (("--prompts", "x", "--levels", 0), "--levels must be at least 1, got 0"),
        (("--prompts", "x", "--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("--prompts", "x", "--num-bands", 1), "num_bands must be an integer of at least 2, got 1"),
        (("--prompts", "x", "--kappa", 0), "kappa must lie in (0, 1], got 0"),
        (("--prompts", "x", "--adapter", "nowhere"), "nowhere"),
        (("--data", "nowhere"), "data folder nowhere does not exist"),
        (("--prompts", "x", "--device", "cuda:77"), "--device cuda:77"),
        (("--prompts", "x", "--promts", "y"), "did you mean --prompts?"),
    ],
)
def test_mistakes(analyze, tiny_sd_dir, tmp_path, arguments, message):
    code, _, err = analyze("--base", tiny_sd_dir, *arguments)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "out" / "analysis.json").exists()


def test_blocks_that_wait_give_the_same_table(analyze, ink, image_folder, tmp_path):
    options = ("--adapter", ink, "--data", image_folder, "--levels", 2, "--pictures", 2, "--no-experts")
    for name, offload in (("plain", "none"), ("offloaded", "blocks")):
        code, _, err = analyze(*options, "--offload", offload, output=name)
        assert code == 0, err
    plain, offloaded = ((tmp_path / name / "reconstruction.csv").read_bytes() for name in ("plain", "offloaded"))
    assert plain == offloaded
