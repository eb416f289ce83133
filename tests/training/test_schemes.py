"""Training experts of other schemes, from a configuration to an adapter that loads."""

import json

import pytest
from listeners import train
from tiny import make_sd_pipeline

import fera
from fera.adapters.inspection import describe
from fera.training import load_config, to_toml

SCHEMES = [
    {"peft_type": "LOHA", "r": 2},
    {"peft_type": "LORA", "use_dora": True, "r": 2},
    {"peft_type": "IA3"},
]


def flags(tiny_sd_dir, image_folder, output, expert):
    return {
        "base": str(tiny_sd_dir),
        "output_dir": str(output),
        "data.train_data_dir": str(image_folder),
        "train.steps": "3",
        "train.batch_size": "2",
        "train.learning_rate": "0.1",
        "validation.loss_samples": "4",
        "adapter.expert": json.dumps(expert),
    }


@pytest.mark.parametrize("expert", SCHEMES, ids=lambda expert: expert["peft_type"])
def test_a_run_trains_them_and_they_load_into_a_pipeline(tiny_sd_dir, image_folder, tmp_path, expert):
    config = load_config(None, flags(tiny_sd_dir, image_folder, tmp_path / "run", expert))
    (tmp_path / "resolved.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "resolved.toml") == config
    train(config)
    pipe = make_sd_pipeline()
    call = {"prompt": "a red rocket", "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"}
    fera.load_adapter(pipe, tmp_path / "run")
    with fera.trace(pipe) as steps:
        pipe(**call)
    assert len(steps) == 2
    described = describe(tmp_path / "run")
    assert described["settings"]["scheme"] == expert["peft_type"]
    assert described["parameters"]["experts"] > 0 and described["targets"]["layers"] > 0
    assert "lora_alpha" not in described["settings"] or expert["peft_type"] == "LORA"


def test_a_scheme_that_is_unknown_is_one_clear_error(tiny_sd_dir, image_folder, tmp_path, capsys):
    from fera.cli.main import main

    arguments = flags(tiny_sd_dir, image_folder, tmp_path / "run", {"peft_type": "PREFIX_TUNING"})
    assert main(["train", *[part for key, value in arguments.items() for part in (f"--{key}", value)]]) == 2
    assert "expert needs peft_type, one of LORA, LOHA" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run" / "adapter").exists()
