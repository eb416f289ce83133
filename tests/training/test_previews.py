"""A validation picture is what `fera generate` draws with the adapter of that step, told what lies beside it."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training_cases import run_config

from fera.cli.main import main
from fera.training import to_toml, train
from fera.training.step import compiling

VALIDATION = {
    "prompts": ["a red rocket", "a blue house"],
    "negative_prompt": "a green tree",
    "steps": 2,
    "num_inference_steps": 3,
    "seed": 5,
    "guidance_scale": 3.0,
}


def pixels(path):
    return Image.open(path).convert("RGB").tobytes()


def generate(adapter, record, output):
    """Draw as a picture's record says."""
    seeds = [image["seed"] for image in record["images"]]
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    options = {
        "adapter": adapter,
        "output": output,
        "base": record["base"],
        "seed": seeds[0],
        **{name: record[name] for name in ("steps", "precision", "height", "width")},
        "guidance-scale": record["guidance_scale"],
        "negative-prompt": record["negative_prompt"],
        "device": "cpu",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["generate", *(image["prompt"] for image in record["images"]), *flags]) == 0


@pytest.mark.parametrize(
    ("base", "precision", "compiled"),
    [
        ("tiny_sd_dir", "no", "no"),
        ("tiny_sd_dir", "no", "blocks"),
        pytest.param("tiny_sd_dir", "bf16", "denoiser", marks=pytest.mark.slow),
        ("tiny_sd3_dir", "bf16", "no"),
    ],
)
def test_previews_are_what_generate_draws(request, image_folder, tmp_path, base, precision, compiled, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    config = run_config(
        request.getfixturevalue(base),
        image_folder,
        tmp_path / "run",
        data={"resolution": 24},  # unlike the base's own
        train={"steps": 3, "checkpointing_steps": 2, "mixed_precision": precision, "learning_rate": 0.1}
        | {"compile": compiled},
        validation=VALIDATION,
    )
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert main(["train", str(tmp_path / "run.toml")]) == 0
    samples = tmp_path / "run" / "samples"
    assert sorted(path.stem for path in samples.glob("*.png")) == [f"step-{step:06d}" for step in (0, 2, 3)]
    drawn = {}
    for step, adapter in ((2, "run/checkpoints/step-000002/adapter"), (3, "run")):
        record = json.loads((samples / f"step-{step:06d}.json").read_text())
        generate(tmp_path / adapter, record, tmp_path / f"drawn-{step}")
        drawn[step] = pixels(tmp_path / f"drawn-{step}" / "grid.png")
        assert drawn[step] == pixels(samples / f"step-{step:06d}.png")
    assert drawn[2] != drawn[3] != pixels(samples / "step-000000.png")
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(tensor.dtype.itemsize == 4 for tensor in weights.values())


def test_drawing_leaves_the_training_as_it_was(tiny_sd_dir, image_folder, tmp_path):
    trained = []
    for name, validation in (("with", VALIDATION), ("without", {})):
        settings = {"train": {"mixed_precision": "bf16", "steps": 2}, "validation": validation}
        train(run_config(tiny_sd_dir, image_folder, tmp_path / name, **settings))
        trained.append(load_file(tmp_path / name / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[1])
