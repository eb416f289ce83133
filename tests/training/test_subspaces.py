"""`adapter.expert = { peft_type = "CERSA" }`: runs, their continuation, and what is refused."""

import pytest
import torch
from adapter_cases import denoiser_of, make_pipeline
from listeners import train
from training_cases import assert_resumes, log_of, power_cut, run_config
from tuner_cases import UNET, predict

import fera
from fera import FeraError
from fera.cli.main import main
from fera.training import TrainConfig
from fera.training.folder.checkpoints import read_state
from fera.tuner.subspace import subspace_factors

ADAPTER = {"expert": {"peft_type": "CERSA", "energy": 0.9}, "target_modules": ["to_q", "conv1"], "r": 2}


def config_of(base, pictures, output, **train_settings):
    settings = {"checkpointing_steps": 2} | train_settings
    return run_config(base, pictures, output, adapter=ADAPTER, train=settings)


@pytest.mark.parametrize("average", [{}, {"use_ema": True}], ids=["last weights", "ema"])
def test_a_run_goes_on_bit_for_bit(tiny_sd_dir, image_folder, tmp_path, average, capsys):
    configs = [config_of(tiny_sd_dir, image_folder, tmp_path / name, **average) for name in ("straight", "stopped")]
    assert_resumes(*configs, 3, "loss", "gates")
    assert "experts inside of principal subspaces" not in capsys.readouterr().out
    losses = log_of(configs[0], "loss")
    assert len(losses) == 6 and all(map(bool, losses))


def test_a_run_says_what_it_keeps_and_its_adapter_is_inspected(tiny_sd_dir, image_folder, tmp_path, capsys):
    config = config_of(tiny_sd_dir, image_folder, tmp_path / "run")
    train(config)
    assert "directions kept of each of" in capsys.readouterr().err
    assert main(["inspect", str(config.output_dir)]) == 0
    told = capsys.readouterr().out
    assert "CERSA" in told and "subspace_energy" in told.replace(" ", "_")
    pipe = make_pipeline("sd")
    base = predict(denoiser_of(pipe), UNET.inputs(2))
    fera.load_adapter(pipe, config.output_dir / "adapter")
    assert not torch.equal(predict(denoiser_of(pipe), UNET.inputs(2)), base)


def test_it_exports_under_a_gate(tiny_sd_dir, image_folder, tmp_path):
    config = config_of(tiny_sd_dir, image_folder, tmp_path / "run")
    train(config)
    out = tmp_path / "lora"
    assert (
        main(["export", str(config.output_dir), "--gate", "uniform", "--output", str(out), "--format", "diffusers"])
        == 0
    )
    assert list(out.rglob("*.safetensors"))


def test_a_run_starts_from_its_adapter(tiny_sd_dir, image_folder, tmp_path):
    first = config_of(tiny_sd_dir, image_folder, tmp_path / "first")
    train(first)
    second = run_config(
        tiny_sd_dir, image_folder, tmp_path / "second", adapter={"start_from": str(first.output_dir / "adapter")}
    )
    from fera.support.progress import SILENT
    from fera.training.start.prepare import prepare

    denoiser = prepare(second, torch.device("cpu"), SILENT).denoiser
    assert list(subspace_factors(denoiser)), "it goes on inside of the subspaces"
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, first.output_dir / "adapter")
    inputs = UNET.inputs(2)
    torch.testing.assert_close(predict(denoiser, inputs), predict(denoiser_of(pipe), inputs), rtol=1e-3, atol=1e-4)


def test_other_directions_are_not_gone_on_with(tiny_sd_dir, image_folder, tmp_path, monkeypatch):
    """As of a machine whose SVD turns equal directions another way."""
    config = config_of(tiny_sd_dir, image_folder, tmp_path / "run")
    with power_cut(4):
        train(config)
    from fera.tuner import subspace

    found = subspace.principal_subspace

    def turned(weight, energy):
        left, values, right = found(weight, energy)
        return type(found(weight, energy))(left.flip(1), values, right.flip(0))

    monkeypatch.setattr(subspace, "principal_subspace", turned)
    with pytest.raises(FeraError, match="the principal directions of .* come out otherwise here"):
        train(config, resume=True)


def test_another_energy_never_goes_on(tiny_sd_dir, image_folder, tmp_path):
    config = config_of(tiny_sd_dir, image_folder, tmp_path / "run")
    with power_cut(3):
        train(config)
    assert read_state(config.output_dir / "checkpoints" / "step-000002")["coordinates"]
    other = config.model_copy(
        update={"adapter": config.adapter.model_copy(update={"expert": {"peft_type": "CERSA", "energy": 0.5}})}
    )
    with pytest.raises(FeraError, match=r"adapter\.expert is .*whatever is allowed"):
        train(other, resume=True, allow=["all"])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"quantization": "4bit"}, "this one is of CERSA"),
        ({"adapter": ADAPTER | {"router": "gradient"}}, "leave adapter.expert out"),
    ],
)
def test_what_does_not_go_with_it(tmp_path, sections, message):
    settings = {"base": "b", "output_dir": tmp_path, "data": {"train_data_dir": tmp_path}, "adapter": ADAPTER}
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate(settings | sections)
