"""Wan 2.2 (14B): a transformer for much noise and one for little, each trained on its own range."""

import pytest
import torch
from clip_cases import frame
from trained_cases import wan
from training_cases import run_config

import fera
from fera.cli.main import main
from fera.errors import FeraError
from fera.models.families import family_of, trained_denoiser
from fera.models.noise import NoiseProcess, noise_process, spread_timesteps
from fera.training import to_toml, train
from fera.training.start.opening import open_sources

BOUNDARY = 0.875


def make_pipeline():
    pipe = wan.make_14b()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan22") / "base"
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        frame(number).save(folder / f"{number}.png")
    return folder


def config_for(base, pictures, output, component):
    data = {"resolution": 32, "instance_prompt": "a red rocket", "validation_fraction": 0.25}
    return run_config(
        base, pictures, output, data=data, adapter={"r": 2, "component": component}, train={"steps": 2, "batch_size": 2}
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("levels", [(BOUNDARY, 1.0), (0.0, BOUNDARY), (0.25, 0.5)])
def test_timesteps_keep_to_the_range_and_are_spread_as_in_the_whole_process(shift, levels):
    whole = NoiseProcess("flow_prediction", 1000, shift=shift)
    part = NoiseProcess("flow_prediction", 1000, shift=shift, levels=levels)
    drawn = spread_timesteps(part, 1000) / 1000
    assert drawn.min() >= levels[0] - 1e-6 and drawn.max() <= levels[1] + 1e-6
    assert drawn.min() < levels[0] + 0.01 and drawn.max() > levels[1] - 0.01
    expected = spread_timesteps(whole, 200_000) / 1000
    expected = expected[(expected >= levels[0]) & (expected <= levels[1])]
    for quantile in (0.1, 0.5, 0.9):
        assert float(drawn.quantile(quantile)) == pytest.approx(float(expected.quantile(quantile)), abs=2e-3)


@torch.no_grad()
def test_each_transformer_predicts_what_the_scheduler_gets_in_its_range():
    pipe = make_pipeline()
    family, seen = family_of(pipe), []
    step = pipe.scheduler.step

    def record(output, timestep, sample, *args, **kwargs):
        seen.append((sample.clone(), torch.as_tensor(timestep).reshape(1), output.clone()))
        return step(output, timestep, sample, *args, **kwargs)

    pipe.scheduler.step = record
    size = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 8, "guidance_scale": 1.0}
    pipe("a red rocket", generator=torch.Generator().manual_seed(0), output_type="latent", **size)
    conditions = family.encode(pipe, ["a red rocket"], torch.device("cpu"))
    used = set()
    for sample, timestep, output in seen:
        level = float(timestep) / 1000
        name = next(name for name, (low, high) in family.ranges.items() if low <= level <= high)
        used.add(name)
        prediction = family.predict(trained_denoiser(pipe, name)[1], sample.flatten(1, 2), timestep, conditions)
        torch.testing.assert_close(prediction, output.flatten(1, 2), rtol=1e-4, atol=1e-5)
    assert used == {"transformer", "transformer_2"}


def test_both_are_trained_one_after_the_other_and_draw_together(base, pictures, tmp_path):
    for name, component in (("high", "transformer"), ("low", "transformer_2")):
        config = config_for(base, pictures, tmp_path / name, component)
        (tmp_path / "run.toml").write_text(to_toml(config))
        assert main(["train", str(tmp_path / "run.toml")]) == 0

    def draw(*names):
        pipe = make_pipeline()
        for name in names:
            fera.load_adapter(pipe, tmp_path / name, adapter_name=name)
        assert [hasattr(pipe.transformer, "fera"), hasattr(pipe.transformer_2, "fera")] == [
            "high" in names,
            "low" in names,
        ]
        size = {"height": 32, "width": 48, "num_frames": 1, "num_inference_steps": 8, "output_type": "latent"}
        return pipe("a red rocket", generator=torch.Generator().manual_seed(0), return_dict=False, **size)[0]

    drawn = [draw(), draw("high"), draw("low"), draw("high", "low")]
    assert all(not torch.equal(one, other) for number, one in enumerate(drawn) for other in drawn[:number])
    call = ["generate", "x", "--adapter", str(tmp_path / "high"), "--adapter", str(tmp_path / "low"), "--steps", "2"]
    call += ["--base", str(base), "--height", "32", "--width", "32", "--num-frames", "1"]
    assert main([*call, "--output", str(tmp_path / "out")]) == 0


def test_a_run_draws_noise_of_its_range_alone(base, pictures, tmp_path):
    from fera.support.progress import SILENT

    for component, levels in family_of(make_pipeline()).ranges.items():
        sources = open_sources(config_for(base, pictures, tmp_path / component, component), SILENT)
        assert sources.name == component and sources.process.levels == levels
        assert sources.denoiser is getattr(sources.pipe, component)
        assert noise_process(sources.pipe.scheduler).levels == (0.0, 1.0)


def test_which_one_to_train_must_be_said(base, pictures, tmp_path, capsys):
    config = config_for(base, pictures, tmp_path / "run", None)
    words = "transformer .noise levels 0.875 to 1., transformer_2 .noise levels 0 to 0.875.. Set adapter.component"
    with pytest.raises(FeraError, match=words):
        train(config)
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert main(["data", "check", str(tmp_path / "run.toml")]) == 2
    assert "Set adapter.component" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(
        FeraError, match="adapter.component is 'unet'; this WanPipeline has: transformer, transformer_2"
    ):
        train(config_for(base, pictures, tmp_path / "run", "unet"))
    pipe = make_pipeline()
    pipe.register_to_config(boundary_ratio=None)
    with pytest.raises(FeraError, match="says nothing of when to use it"):
        family_of(pipe)
