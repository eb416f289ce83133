"""`fera evaluate`: subjects side by side, files, and what is refused."""

import json

import pytest
from adapter_cases import add_adapter
from diffusers import StableDiffusionPipeline
from PIL import Image

import fera
from fera.cli.evaluate import FEATURES
from fera.cli.main import main
from fera.errors import FeraError
from fera.evaluation.settings import Features
from fera.evaluation.subjects import load_subject, names_of


@pytest.fixture(scope="module")
def subjects(tiny_sd_dir, tmp_path_factory):
    """A routed adapter, a plain LoRA and a fine-tuned denoiser, as runs."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("subjects")
    fera.save_adapter(
        add_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir), seed=1), folder / "ink" / "adapter"
    )
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_dir)
    model = get_peft_model(pipe.unet, LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    model.save_pretrained(folder / "lora" / "adapter")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_dir)
    for parameter in pipe.unet.parameters():
        parameter.data.mul_(1.1)
    pipe.unet.save_pretrained(folder / "full" / "adapter")
    return folder


@pytest.fixture
def evaluate(tmp_path, tiny_sd_dir, image_folder, capfd):
    """Runs `fera evaluate` into `out`; returns exit code, standard output and error."""

    def run(*arguments):
        capfd.readouterr()
        small = ("--loss-samples", "4", "--steps", "2", "--data", image_folder, "--output", tmp_path / "out")
        code = main(["evaluate", "--base", str(tiny_sd_dir), *map(str, small), *map(str, arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def test_all_kinds_side_by_side(evaluate, subjects, tmp_path):
    adapters = [word for name in ("ink", "lora", "full") for word in ("--adapter", subjects / name)]
    code, out, err = evaluate("--baseline", *adapters, "--max-prompts", "2")
    assert code == 0, err
    names = ["base", "ink", "lora", "full"]
    assert out.splitlines()[0].split() == names
    losses = []
    for name in names:
        found = json.loads((tmp_path / "out" / name / "evaluation.json").read_text())
        losses.append(found["loss"])
        assert all((tmp_path / "out" / name / picture["file"]).exists() for picture in found["pictures"])
    assert len(set(losses)) == 4
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.height > 5 * 100  # the four and the real pictures
    assert "held-out loss" in out and "sliced Wasserstein" in out and str(tmp_path / "out") in out.splitlines()[-1]


def test_a_weight_of_nothing_is_the_base(evaluate, subjects, tmp_path):
    code, _, err = evaluate("--baseline", "--adapter", f"{subjects / 'ink'}=0", "--images-per-prompt", "0")
    assert code == 0, err
    base, ink = (json.loads((tmp_path / "out" / name / "evaluation.json").read_text()) for name in ("base", "ink"))
    assert base["samples"] == ink["samples"]
    assert not (tmp_path / "out" / "grid.png").exists()


def test_results_are_not_replaced_unasked(evaluate):
    assert evaluate("--images-per-prompt", "0")[0] == 0
    code, _, err = evaluate("--images-per-prompt", "0")
    assert code == 2 and "already holds evaluations of base" in err and "Traceback" not in err
    assert evaluate("--images-per-prompt", "0", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--features", "dino"], "invalid choice"),
        (["--features", "clip", "--clip-model", "no/where"], "cannot load 'no/where'"),
        (["--loss-samples", "0"], "loss_samples must be at least 1"),
        (["--adapter", "nowhere"], "no adapter at nowhere"),
        (["--los-samples", "3"], "--loss-samples"),
    ],
)
def test_mistakes_are_one_error(evaluate, arguments, message):
    code, _, err = evaluate(*arguments)
    assert code == 2 and message in err.replace("\n", " ") and "Traceback" not in err


def test_the_choices_are_those_of_the_settings():
    assert FEATURES == Features.__args__


def test_names_are_telling_and_unlike():
    paths = ["runs/a/adapter", "b/adapter/adapter_model.safetensors", "other/a", "x/base", "owner/name.safetensors"]
    assert names_of(paths) == ["a", "b", "a-2", "base-2", "name"]


def test_a_denoiser_takes_no_weight(subjects, tiny_sd_dir):
    with pytest.raises(FeraError, match="takes no weight"):
        load_subject(StableDiffusionPipeline.from_pretrained(tiny_sd_dir), str(subjects / "full"), 0.5)
