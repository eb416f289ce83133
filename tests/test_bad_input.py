"""What a user can get wrong in a training run: one clear error, exit code 2, nothing lost."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fera.cli.main import main
from fera.training.trainer import Trainer


@pytest.fixture
def run(tiny_sd_dir, image_folder, tmp_path, capsys):
    """Call `fera train` with settings as flags; gives the exit code and the error message."""

    def call(*extra: str, **flags: object) -> tuple[int, str]:
        settings = {
            "base": tiny_sd_dir,
            "output_dir": tmp_path / "out",
            "data.train_data_dir": image_folder,
            "data.cache_dir": tmp_path / "cache",
            "train.steps": 2,
            "train.batch_size": 2,
        } | {name.replace("__", "."): value for name, value in flags.items()}
        arguments = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        capsys.readouterr()
        code = main(["train", *arguments, *extra])
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return code, text[text.find("error: ") :] if "error: " in text else text

    return call


def test_the_settings_are_fine(run):
    assert run()[0] == 0


def test_missing_base(run, tmp_path):
    code, message = run(base=tmp_path / "absent")
    assert code == 2 and "absent" in message and "does not exist" in message
    assert not (tmp_path / "out").exists()


def test_base_on_the_hub_that_cannot_be_had(run):
    code, message = run(base="someone/something")
    assert code == 2 and "cannot load base 'someone/something' (no such folder here; tried as a Hub id)" in message


def test_base_that_is_no_pipeline(run, tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    code, message = run(base=tmp_path / "unet")
    assert code == 2 and "no model_index.json" in message and "config.json" in message
    (tmp_path / "model.safetensors").write_bytes(b"x")
    code, message = run(base=tmp_path / "model.safetensors")
    assert code == 2 and "model.safetensors: it cannot be read" in message


def copy_of(folder: Path, to: Path) -> Path:
    import shutil

    return shutil.copytree(folder, to)


def test_unreadable_base(run, tiny_sd_dir, tmp_path):
    broken = copy_of(tiny_sd_dir, tmp_path / "broken")
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, message = run(base=broken)
    assert code == 2 and "cannot load base" in message
    (broken / "model_index.json").write_text("{")
    code, message = run(base=broken)
    assert code == 2 and "cannot load base" in message


def test_pipeline_that_training_does_not_know(run, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    code, message = run(base=tmp_path / "ddpm")
    assert code == 2 and "cannot train a DDPMPipeline" in message and "StableDiffusion3Pipeline" in message


def test_empty_data_folder(run, tmp_path):
    (tmp_path / "empty").mkdir()
    code, message = run(data__train_data_dir=tmp_path / "empty")
    assert code == 2 and "no pictures" in message and "found nothing" in message


def test_missing_captions(run, image_folder):
    (image_folder / "1.txt").unlink()
    code, message = run()
    assert code == 2 and "1 of 4 pictures" in message and "1.png" in message
    assert run("--data.allow_missing_captions")[0] == 0


def test_bad_pictures(run, image_folder, tmp_path, capsys):
    Image.effect_noise((64, 64), 50).save(image_folder / "cut.png")
    content = (image_folder / "cut.png").read_bytes()
    (image_folder / "cut.png").write_bytes(content[:500])
    (image_folder / "empty.jpg").touch()
    for name in ("cut", "empty"):
        (image_folder / f"{name}.txt").write_text("x")
    code, message = run()
    assert code == 2 and "cut.png is damaged" in message and "empty.jpg is empty (0 bytes)" in message
    assert "data.skip_bad" in message
    code, message = run("--data.skip_bad")
    assert code == 0 and "skipped 2 pictures" in message
    assert '"skipped_pictures": 2' in (tmp_path / "out" / "summary.json").read_text()


def test_unknown_key_in_the_file(run, tmp_path):
    (tmp_path / "run.toml").write_text("[train]\nstepz = 3\n")
    code, message = run(str(tmp_path / "run.toml"))
    assert code == 2 and "unknown key 'train.stepz'" in message and "did you mean 'train.steps'?" in message


def test_unknown_flag(run):
    code, message = run("--train.stepz", "3")
    assert code == 2 and "unknown option --train.stepz; did you mean --train.steps?" in message


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("train.steps", "0", "train.steps = 0: expected integer, at least 1"),
        ("train.learning_rate", "fast", 'train.learning_rate = "fast": expected number'),
        ("data.skip_bad", "perhaps", "expected true or false"),
        ("adapter.kappa", "2", "at most 1"),
        ("train.mixed_precision", "fp8", "expected one of no, fp16, bf16"),
    ],
)
def test_wrong_type_or_range(run, flag, value, expected):
    code, message = run(f"--{flag}", value)
    assert code == 2 and expected in message and f"flag --{flag}" in message


def test_flag_without_its_value(run):
    code, message = run("--train.steps")
    assert code == 2 and "--train.steps" in message and "expected one argument" in message


def test_target_modules_that_match_nothing(run):
    code, message = run("--adapter.target_modules", "to_q", "q_proj")
    assert code == 2 and "q_proj" in message and "to_out.0" in message and "to_k" in message


def test_layers_that_do_not_exist(run):
    code, message = run("--adapter.blocks", "transformer_blocks.40-50")
    assert code == 2 and "40-50" in message and "down_blocks.0-1" in message
    code, message = run("--adapter.exclude_modules", "to_(q|k)")
    assert code == 2 and "adapter.exclude_modules: 'to_(q|k)' is no name or pattern" in message


def test_resolution_that_does_not_fit(run):
    code, message = run(data__resolution=17)
    assert code == 2 and "data.resolution is 17" in message and "multiple of 2" in message


def test_objective_that_does_not_fit(run):
    code, message = run(train__snr_gamma=5)
    assert code == 2 and "snr_gamma" in message
    code, message = run(train__prediction_type="epsilon")
    assert code == 2 and "flow" in message


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder_that_holds_a_run(run, tmp_path):
    assert run()[0] == 0
    before = contents(tmp_path / "out")
    code, message = run()
    assert code == 2 and "already holds a run" in message and "--resume" in message and "--overwrite" in message
    assert contents(tmp_path / "out") == before
    # A mistake found while preparing must not have thrown the former run away.
    code, message = run("--overwrite", base=tmp_path / "absent")
    assert code == 2 and contents(tmp_path / "out") == before
    code, message = run("--resume", "--train.learning_rate", "0.5")
    assert code == 2 and "train.learning_rate is 0.5, was 0.0001" in message
    assert run("--overwrite")[0] == 0
    code, message = run("--overwrite", "--resume")
    assert code == 2 and "not allowed with" in message


def test_resuming_where_nothing_is(run):
    code, message = run("--resume")
    assert code == 2 and "nothing to resume" in message


def test_resuming_after_the_data_changed(run, image_folder):
    assert run()[0] == 0
    (image_folder / "0.txt").write_text("something else")
    code, message = run("--resume", train__steps=4)
    assert code == 2 and "pictures or captions changed" in message


def poison(trainer: Trainer) -> None:
    with torch.no_grad():
        for name, parameter in trainer._setup.denoiser.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.fill_(float("nan"))


def test_loss_that_is_not_finite(run, tmp_path, monkeypatch):
    advance = Trainer.advance

    def break_after_three(self):
        if self.step == 3:
            poison(self)
        advance(self)

    monkeypatch.setattr(Trainer, "advance", break_after_three)
    code, message = run(train__steps=6, train__checkpointing_steps=2)
    assert code == 2 and "the loss is not finite at step 4 on " in message and ".png" in message
    checkpoint = tmp_path / "out" / "checkpoints" / "step-000002"
    assert str(checkpoint) in message
    monkeypatch.undo()
    assert run("--resume", train__steps=6, train__checkpointing_steps=2)[0] == 0


def test_what_is_not_finite_is_null_in_json(tiny_sd_dir, run, tmp_path):
    """A base whose output is not a number: every step is skipped, and every held-out loss is none."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    base = shutil.copytree(tiny_sd_dir, tmp_path / "broken")
    path = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"].fill_(float("nan"))
    save_file(weights, path, {"format": "pt"})
    code, message = run(base=str(base), data__validation_fraction=0.25)
    assert code == 0, message
    lines = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    assert {record["held_out_loss"] for record in records if "held_out_loss" in record} == {None}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=refuse)
    assert summary["held_out_loss_before"] is summary["held_out_loss_after"] is None


def test_gradient_that_is_not_finite(run, tmp_path, monkeypatch):
    """Caught before the step, so that no checkpoint is ever written with it."""
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args, **kwargs: clip(*args, **kwargs) * float("inf"))
    code, message = run(train__max_skipped_steps=1, train__steps=3)
    assert code == 2 and "the gradient is not finite at step 2 on " in message and "as in the 1 steps" in message
    assert "No checkpoint was saved before" in message
    assert not list((tmp_path / "out" / "checkpoints").iterdir())


def test_ctrl_c(run, tmp_path, monkeypatch):
    advance = Trainer.advance

    def interrupt(self):
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        advance(self)

    monkeypatch.setattr(Trainer, "advance", interrupt)
    code, message = run(train__steps=5)
    assert code == 130
    assert (tmp_path / "out" / "checkpoints" / "step-000002" / "adapter" / "adapter_model.safetensors").exists()
    monkeypatch.undo()
    assert main(["train", str(tmp_path / "out" / "config.toml"), "--resume"]) == 0
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


def test_no_command_and_unknown_command(capsys):
    assert main([]) == 2
    assert main(["trian"]) == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err
    assert main(["train", "a.toml", "b.toml"]) == 2
    assert main(["train", "absent.toml"]) == 2
    assert "cannot read the configuration absent.toml" in capsys.readouterr().err
