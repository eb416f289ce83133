"""What may differ between a run and its continuation."""

import json

import pytest
import torch
from listeners import train
from training_cases import log_of, run_config

from fera import FeraError
from fera.cli.main import main
from fera.config.keys import keys
from fera.training import DataConfig, TrainConfig
from fera.training.folder.resuming import (
    FREE,
    NEVER,
    NEVER_BUT,
    CannotResume,
    Change,
    adopt_hyperparameters,
    check_allow,
    check_changes,
)


def config(tmp_path, base="b", data=None, adapter=None, **train: object) -> TrainConfig:
    settings = {"base": base, "output_dir": tmp_path, "data": {"train_data_dir": tmp_path} | (data or {})}
    return TrainConfig.model_validate(settings | {"adapter": adapter or {}, "train": train})


@pytest.fixture
def checkpoint(tmp_path):
    """Of the default settings."""
    write(tmp_path, config(tmp_path).model_dump(mode="json"))
    return tmp_path


def write(folder, settings: dict, version: int = 2) -> None:
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "manifest.json").write_text(json.dumps({"format_version": version, "files": {}}))


def test_names_are_those_of_settings():
    known = [key.name for key in keys()]
    sections = {name.partition(".")[0] + "." for name in known if "." in name}
    assert {*FREE, *NEVER, *NEVER_BUT} <= {*known, *sections}


def test_what_makes_no_other_run_may_change(checkpoint):
    longer = config(checkpoint, steps=20, checkpointing_steps=3, max_skipped_steps=0, data={"cache_dir": checkpoint})
    assert check_changes(checkpoint, longer, []) == []


def test_other_settings_are_listed_and_asked_for(checkpoint):
    changed = config(checkpoint, learning_rate=0.5, batch_size=3)
    with pytest.raises(CannotResume) as refused:
        check_changes(checkpoint, changed, [])
    message = str(refused.value)
    assert "train.batch_size is 3, was 8; train.learning_rate is 0.5, was 0.0001" in message
    assert "`allow` train.batch_size train.learning_rate" in message
    with pytest.raises(CannotResume, match=r"with other settings: train\.batch_size is 3, was 8\."):
        check_changes(checkpoint, changed, ["train.learning_rate"])
    expected = [Change("train.batch_size", 8, 3), Change("train.learning_rate", 0.0001, 0.5)]
    for allow in (["train.learning_rate", "train.batch_size"], ["train"], ["all"]):
        assert check_changes(checkpoint, changed, allow) == expected


@pytest.mark.parametrize("adapter", [{"r": 8}, {"num_experts": 2}, {"target_modules": ["to_q"]}, {"kappa": 0.5}])
def test_another_adapter_never_goes_on(checkpoint, adapter):
    with pytest.raises(CannotResume, match=rf"adapter\.{next(iter(adapter))} is .*whatever is allowed"):
        check_changes(checkpoint, config(checkpoint, adapter=adapter), ["all"])


def test_dropout_may_change(checkpoint):
    changed = config(checkpoint, adapter={"lora_dropout": 0.5})
    assert check_changes(checkpoint, changed, ["adapter.lora_dropout"]) == [Change("adapter.lora_dropout", 0.0, 0.5)]


def test_settings_that_the_checkpoint_does_not_know_had_their_defaults(checkpoint):
    settings = config(checkpoint).model_dump(mode="json")
    del settings["train"]["noise_offset"]
    write(checkpoint, settings)
    assert check_changes(checkpoint, config(checkpoint), []) == []
    with pytest.raises(CannotResume, match=r"train\.noise_offset is 0\.1, was 0\.0"):
        check_changes(checkpoint, config(checkpoint, noise_offset=0.1), [])


def test_what_is_allowed_must_exist():
    check_allow(["train.learning_rate", "data", "all", "seed"], resume=True)
    with pytest.raises(FeraError, match=r"no such setting; did you mean 'train\.learning_rate'\?"):
        check_allow(["train.learnig_rate"], resume=True)
    with pytest.raises(FeraError, match="it needs `resume`"):
        check_allow(["train.learning_rate"], resume=False)


def test_changed_rates_take_effect_in_what_was_restored():
    """As if the schedule had had the new rate from its start; what did not change stays as restored."""

    def made(rate: float, decay: float) -> torch.optim.AdamW:
        groups = [{"params": [torch.nn.Parameter(torch.ones(2))]}, {"params": [], "lr": 2 * rate}]
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)

    def scheduled(optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    old, expected = made(0.1, 0.0), made(0.5, 0.3)
    old_schedule, expected_schedule = scheduled(old), scheduled(expected)
    for _ in range(3):
        for optimizer, schedule in ((old, old_schedule), (expected, expected_schedule)):
            optimizer.step()
            schedule.step()
    restored = made(0.5, 0.3)
    schedule = scheduled(restored)
    restored.load_state_dict(old.state_dict())
    schedule.load_state_dict(old_schedule.state_dict())
    assert restored.param_groups[0]["lr"] == 0.025, "PyTorch restores the former rate"
    restored.param_groups[0]["kept"] = "by the optimizer itself"
    adopt_hyperparameters(restored.param_groups, made(0.1, 0.0).param_groups, made(0.5, 0.3).param_groups, schedule)
    assert schedule.get_last_lr() == expected_schedule.get_last_lr() == [0.125, 0.25]
    assert restored.param_groups[0]["kept"] and restored.param_groups[0]["weight_decay"] == 0.3
    for _ in range(2):
        for stepped in (schedule, expected_schedule):
            stepped.optimizer.step()
            stepped.step()
        assert schedule.get_last_lr() == expected_schedule.get_last_lr()


def test_an_allowed_learning_rate_takes_effect(tiny_sd_dir, image_folder, tmp_path, capsys):
    def configured(steps: int, **train: object) -> TrainConfig:
        train = {"steps": steps, "lr_scheduler": "linear", "lr_warmup_steps": 1} | train
        return run_config(tiny_sd_dir, image_folder, tmp_path / "run", train=train)

    train(configured(2))
    changed = configured(4, learning_rate=0.5)
    with pytest.raises(FeraError, match=r"train\.learning_rate is 0\.5, was 0\.01\. "):
        train(changed, resume=True)
    train(changed, resume=True, allow=["train.learning_rate"])
    told = " ".join(capsys.readouterr().err.split())
    assert "step 2 of 4, epoch 1.00, learning rate 0.333" in told
    assert "changed, as allowed: train.learning_rate is 0.5, was 0.01" in told
    assert log_of(changed, "lr") == pytest.approx([0, 0.01, 0.5 * 2 / 3, 0.5 / 3], rel=1e-5)
    assert log_of(changed, "changed") == [{"train.learning_rate": 0.5}]


def test_other_pictures_and_other_bases(tiny_sd_dir, image_folder, tmp_path, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    def resumed(steps: int, *allow: str, base=tiny_sd_dir) -> tuple[int, str]:
        arguments = [f"--base={base}", f"--output_dir={tmp_path / 'run'}", f"--data.train_data_dir={image_folder}"]
        arguments += [f"--train.steps={steps}", "--train.batch_size=1", "--train.consistency_weight=0"]
        capsys.readouterr()
        code = main(["train", *arguments, *(["--resume"] if steps > 1 else []), *allow])
        return code, " ".join(capsys.readouterr().err.split())

    assert resumed(1)[0] == 0
    (image_folder / "0.txt").write_text("something else")
    code, message = resumed(2)
    assert code == 2 and "pictures or captions changed" in message and "--resume.allow data" in message
    code, message = resumed(2, "--resume.allow", "data")
    assert code == 0 and "changed, as allowed: pictures or captions" in message

    moved = shutil.copytree(tiny_sd_dir, tmp_path / "moved")
    code, message = resumed(3, base=moved)
    assert code == 2 and "--resume.allow base" in message
    assert resumed(3, "--resume.allow", "base", base=moved)[0] == 0
    weights = moved / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    code, message = resumed(4, "--resume.allow", "all", base=moved)
    assert code == 2 and "its base has other weights" in message


def test_a_lost_data_folder_is_not_taken_for_a_change(tmp_path):
    """Only its content counts where it is allowed to move."""
    write(tmp_path, config(tmp_path).model_dump(mode="json"))
    moved = config(tmp_path).model_copy(update={"data": DataConfig(train_data_dir=tmp_path / "elsewhere")})
    assert [change.name for change in check_changes(tmp_path, moved, ["data"])] == ["data.train_data_dir"]
