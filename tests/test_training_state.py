import json

import pytest
import torch

from fera import FeraError
from fera.training import DataConfig, OptimizationConfig, TrainConfig
from fera.training.state import RunFolder, load_state


def config(tmp_path, **train: object) -> TrainConfig:
    data = DataConfig(train_data_dir=tmp_path)
    return TrainConfig(base="b", output_dir=tmp_path, data=data, train=OptimizationConfig(**train))


def save(run: RunFolder, step: int, settings: TrainConfig, keep: int = 9) -> None:
    state = {"config": json.dumps(settings.model_dump(mode="json")), "data": "d", "tensor": torch.ones(2)}
    run.save_checkpoint(step, state, lambda folder: folder.mkdir(), keep=keep)


def test_fresh_folder_is_free(tmp_path):
    assert RunFolder(tmp_path / "new").check(resume=False, overwrite=False) is None
    (tmp_path / "notes.txt").touch()
    assert RunFolder(tmp_path).check(resume=False, overwrite=False) is None


def test_run_is_kept_unless_told(tmp_path):
    run = RunFolder(tmp_path)
    run.log.write_text("{}\n")
    with pytest.raises(FeraError, match=r"already holds a run \(log\.jsonl\).*--resume.*--overwrite"):
        run.check(resume=False, overwrite=False)
    assert run.check(resume=False, overwrite=True) is None
    assert run.log.exists(), "checking removes nothing"
    with pytest.raises(FeraError, match="nothing to resume"):
        run.check(resume=True, overwrite=False)
    with pytest.raises(FeraError, match="exclude each other"):
        run.check(resume=True, overwrite=True)


def test_overwriting_keeps_the_cache_and_strangers(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 3, config(tmp_path))
    run.log.touch()
    for other in ("cache", "mine"):
        (tmp_path / other).mkdir()
    run.begin(config(tmp_path), "text", resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "checkpoints", "config.toml", "mine"]
    assert run.latest_checkpoint() is None


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(FeraError, match="is a file"):
        RunFolder(tmp_path / "out").check(resume=False, overwrite=False)
    with pytest.raises(FeraError, match="cannot write"):
        RunFolder(tmp_path / "out" / "run").begin(config(tmp_path), "text", resume=False)


def test_checkpoints_rotate(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2, 10):
        save(run, step, config(tmp_path), keep=2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-000002", "step-000010"]
    assert run.latest_checkpoint().name == "step-000010"


def test_interrupted_writing_leaves_no_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 1, config(tmp_path))

    def fail(folder):
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run.save_checkpoint(2, {}, fail, keep=1)
    assert run.latest_checkpoint().name == "step-000001"
    save(run, 2, config(tmp_path))
    assert run.latest_checkpoint().name == "step-000002"


def test_state_comes_back(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5, config(tmp_path))
    state = load_state(run.latest_checkpoint(), config(tmp_path), "d")
    assert state["step"] == 5 and torch.equal(state["tensor"], torch.ones(2))


def test_settings_that_make_another_run_are_named(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5, config(tmp_path, steps=10))
    load_state(run.latest_checkpoint(), config(tmp_path, steps=20, checkpointing_steps=3), "d")
    with pytest.raises(FeraError, match=r"train\.learning_rate is 0\.5, was 0\.0001"):
        load_state(run.latest_checkpoint(), config(tmp_path, learning_rate=0.5), "d")
    with pytest.raises(FeraError, match="pictures or captions changed"):
        load_state(run.latest_checkpoint(), config(tmp_path), "other")


def test_a_run_from_before_a_key_was_there_goes_on(tmp_path):
    run, settings = RunFolder(tmp_path), config(tmp_path).model_dump(mode="json")
    del settings["tokens"], settings["train"]["loraplus_lr_ratio"]
    run.save_checkpoint(5, {"config": json.dumps(settings), "data": "d"}, lambda folder: folder.mkdir(), keep=1)
    assert load_state(run.latest_checkpoint(), config(tmp_path), "d")["step"] == 5
    with pytest.raises(FeraError, match=r"train\.loraplus_lr_ratio is 4\.0, was 1\.0"):
        load_state(run.latest_checkpoint(), config(tmp_path, loraplus_lr_ratio=4.0), "d")


def test_damaged_or_newer_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5, config(tmp_path))
    path = run.latest_checkpoint() / "state.pt"
    torch.save({**torch.load(path), "format_version": 99}, path)
    with pytest.raises(FeraError, match="newer fera"):
        load_state(run.latest_checkpoint(), config(tmp_path), "d")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FeraError, match="cannot be read"):
        load_state(run.latest_checkpoint(), config(tmp_path), "d")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    import os

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    run = RunFolder(tmp_path)
    save(run, 5, config(tmp_path))
    torch.save({"format_version": 1, "x": Evil()}, run.latest_checkpoint() / "state.pt")
    with pytest.raises(FeraError, match="cannot be read"):
        load_state(run.latest_checkpoint(), config(tmp_path), "d")
    assert not (tmp_path / "pwned").exists()


def test_log_is_cut_back_to_the_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    run.log.write_text('{"step": 0}\n{"step": 10}\n{"step": 20}\n{"st')
    run.truncate_log(10)
    assert run.log.read_text() == '{"step": 0}\n{"step": 10}\n'
