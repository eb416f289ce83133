"""Every example runs, on a tiny base in the place of the emoji base; every example configuration is valid."""

import importlib.util
from pathlib import Path

import pytest
from adapter_cases import add_adapter
from diffusers import StableDiffusionPipeline

import fera
from fera.generation import generate
from fera.training import load_config

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def adapters(tiny_sd_dir, tmp_path, monkeypatch):
    """Two adapters of the tiny base, which is the emoji base here."""
    monkeypatch.setattr("fera.demo.base_path", lambda: tiny_sd_dir)
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("ink", "neon")):
        fera.save_adapter(add_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir), seed=seed), tmp_path / name)


@pytest.mark.usefixtures("adapters")
def test_train_loop(tmp_path, tiny_sd_dir):
    losses = load("train_loop").main(steps=2, output="out", batch_size=2)
    assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)
    fera.load_adapter(StableDiffusionPipeline.from_pretrained(tiny_sd_dir), "out")


@pytest.mark.usefixtures("adapters")
def test_mix_adapters(tmp_path):
    example, rows = load("mix_adapters"), []
    example.generate = lambda *args, **kwargs: rows.append(generate(*args, **kwargs)) or rows[-1]
    grid = example.main(steps=2, first="ink", second="neon")
    assert grid.height > 5 * 128 and (tmp_path / "mixtures.png").is_file()
    # At its ends the mixture is one of the adapters alone.
    for row, name in ((rows[0], "ink"), (rows[-1], "neon")):
        pipe = StableDiffusionPipeline.from_pretrained(fera.demo.base_path())
        fera.load_adapter(pipe, name)
        alone = generate(pipe, example.PROMPTS, num_inference_steps=2)
        assert [image.tobytes() for image in row] == [image.tobytes() for image in alone]
    assert rows[0][0].tobytes() != rows[-1][0].tobytes()


@pytest.mark.usefixtures("adapters")
def test_trace_gates(tmp_path, capsys):
    curves = load("trace_gates").main(steps=3, adapter="ink")
    assert len(curves.timesteps) == 3 and (tmp_path / "routing.png").is_file()
    assert capsys.readouterr().out.count("timestep") == 3


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_configurations(path):
    load_config(path)


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
