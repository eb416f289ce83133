"""Every example runs, on a tiny base in the place of the emoji base; every example configuration is valid."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from adapter_cases import add_adapter
from diffusers import StableDiffusionPipeline
from models.flux2 import CALL, NEGATIVE_PROMPT, make_klein_pipeline
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model

import fera
from fera.generation import generate
from fera.training import load_config

EXAMPLES = Path(__file__).parents[1] / "examples"
BENCHMARK = EXAMPLES / "peft-benchmark"


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


@pytest.mark.parametrize("path", sorted(BENCHMARK.glob("experiments/*/*")), ids=lambda path: path.parent.name)
def test_peft_benchmark(path, tmp_path):
    """What PEFT's script does: a configuration, steps of all that trains, drawing with and without, saving."""

    def draw(pipe):
        return pipe(**CALL, **NEGATIVE_PROMPT, generator=torch.Generator().manual_seed(0)).images

    config = PeftConfig.from_pretrained(str(path))
    lora = LoraConfig(r=32, lora_alpha=32, target_modules=config.target_modules)
    size = get_peft_model(make_klein_pipeline().transformer, lora).get_nb_trainable_parameters()[0]
    pipe = make_klein_pipeline()
    alone = draw(pipe)
    model = pipe.transformer = get_peft_model(pipe.transformer, config)
    trained = model.get_nb_trainable_parameters()[0]
    assert trained - size == sum(weight.numel() for weight in model.fera.router.parameters())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    places = torch.cartesian_prod(*[torch.arange(count) for count in (1, 4, 6, 1)])[None].float()
    for _ in range(2):  # the first moves B alone
        predicted = model(
            hidden_states=torch.randn(1, 24, 16),
            timestep=torch.tensor([0.5]),
            guidance=None,
            encoder_hidden_states=CALL["prompt_embeds"],
            txt_ids=torch.zeros(1, 5, 4),
            img_ids=places,
            return_dict=False,
        )[0]
        predicted.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode(), fera.trace(pipe) as steps:
        adapted = draw(pipe)
    assert len(steps) == 2 * CALL["num_inference_steps"]  # guidance in two calls
    with torch.inference_mode(), model.disable_adapter():
        assert torch.equal(draw(pipe), alone) and not torch.equal(adapted, alone)
    model.save_pretrained(tmp_path)
    again = make_klein_pipeline()
    again.transformer = PeftModel.from_pretrained(again.transformer, tmp_path)
    torch.testing.assert_close(draw(again), adapted)


def test_peft_benchmark_runs_a_script_that_knows_fera(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "beside.py").write_text("from peft import PeftConfig\n")
    script = tmp_path / "script.py"
    script.write_text("import sys\nfrom beside import PeftConfig\nprint(PeftConfig.from_pretrained(sys.argv[1]).r)\n")
    example = load("peft-benchmark/run_with_fera")
    example.main([str(script), str(BENCHMARK / "experiments" / "fera" / "flux2-klein-default")])
    assert capsys.readouterr().out == "8\n"
    with pytest.raises(SystemExit, match="nowhere.py"):
        example.main([str(tmp_path / "nowhere.py")])


def test_every_example_is_tested():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
