import json
import os

import pytest
import torch

from fera import FeraError
from fera.training import DataConfig, OptimizationConfig, TrainConfig, to_toml
from fera.training.folder.checkpoints import read_config, read_state
from fera.training.folder.run_folder import RunFolder


def config(tmp_path, **train: object) -> TrainConfig:
    data = DataConfig(train_data_dir=tmp_path)
    return TrainConfig(base="b", output_dir=tmp_path, data=data, train=OptimizationConfig(**train))


def save(run: RunFolder, step: int, settings: TrainConfig, keep: int = 9) -> None:
    run.checkpoints.mkdir(exist_ok=True)
    run.save_checkpoint(step, settings, {"tensor": torch.ones(2)}, write_adapter, keep=keep)


def write_adapter(folder) -> None:
    folder.mkdir()
    (folder / "weights").write_bytes(b"0123456789" * 100)


def names(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def flip_a_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_fresh_folder_is_free(tmp_path):
    assert RunFolder(tmp_path / "new").check(resume=False, overwrite=False) is None
    (tmp_path / "notes.txt").touch()
    assert RunFolder(tmp_path).check(resume=False, overwrite=False) is None


def test_run_is_kept_unless_told(tmp_path):
    run = RunFolder(tmp_path)
    run.log.write_text("{}\n")
    with pytest.raises(FeraError, match=r"already holds a run \(log\.jsonl\).*`resume`.*`overwrite`"):
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
    run.begin("text", resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "checkpoints", "config.toml", "mine"]
    assert run.latest_checkpoint() is None


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(FeraError, match="is a file"):
        RunFolder(tmp_path / "out").check(resume=False, overwrite=False)
    with pytest.raises(FeraError, match="cannot write"):
        RunFolder(tmp_path / "out" / "run").begin("text", resume=False)


def test_checkpoints_rotate(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2, 10, 1_000_000):
        save(run, step, config(tmp_path), keep=2)
    assert names(run) == ["step-000010", "step-1000000"]
    assert run.latest_checkpoint().name == "step-1000000"


def test_a_manifest_lists_every_file(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 1, config(tmp_path))
    checkpoint = run.latest_checkpoint()
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    held = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert set(files) == held - {"manifest.json"} == {"adapter/weights", "config.json", "state.pt"}
    digest = "ab6c5f3237f551d208fc2ca5225a4cca20b3fd638794a804f0ed5549d5041734"  # from sha256sum
    assert files["adapter/weights"] == {"bytes": 1000, "sha256": digest}


@pytest.mark.parametrize("where", ["state.pt", "config.json", "adapter/weights", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "flipped", "removed"])
def test_damage_is_named_and_the_one_before_is_taken(tmp_path, where, how):
    run = RunFolder(tmp_path)
    for step in (1, 2):
        save(run, step, config(tmp_path))
    path = run.checkpoints / "step-000002" / where
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-2])
    elif how == "removed":
        path.unlink()
    else:
        flip_a_bit(path)
    said: list[str] = []
    assert run.check(resume=True, overwrite=False, say=said.append).name == "step-000001"
    assert len(said) == 1 and "step-000002 is damaged" in said[0]
    assert where in said[0] or where == "manifest.json"  # a flipped bit there can garble what it says of another file
    assert "step-000002" in names(run), "what is damaged stays"


def test_nothing_whole_to_resume(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 2, config(tmp_path))
    run.begin(to_toml(config(tmp_path)), resume=True)
    flip_a_bit(run.checkpoints / "step-000002" / "state.pt")
    with pytest.raises(
        FeraError, match=r"no checkpoint in .* is whole.*step-000002 is damaged: state\.pt.*`overwrite`"
    ):
        run.check(resume=True, overwrite=False)


def test_rotation_does_not_count_what_is_damaged(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        save(run, step, config(tmp_path))
    for step in (2, 3):
        flip_a_bit(run.checkpoints / f"step-00000{step}" / "adapter" / "weights")
    save(run, 4, config(tmp_path), keep=2)
    assert names(run) == [f"step-00000{step}" for step in (1, 2, 3, 4)]
    save(run, 5, config(tmp_path), keep=2)
    assert names(run) == [f"step-00000{step}" for step in (2, 3, 4, 5)]


def test_a_damaged_one_makes_room_for_its_step(tmp_path):
    run = RunFolder(tmp_path)
    for step in (1, 2):
        save(run, step, config(tmp_path))
    for copy in (1, 2):
        flip_a_bit(run.checkpoints / "step-000002" / "state.pt")
        save(run, 2, config(tmp_path), keep=1)
        assert run.latest_checkpoint().name == "step-000002"
        assert names(run) == ["step-000002", *(f"step-000002.damaged-{number}" for number in range(1, copy + 1))]


def test_a_run_without_a_checkpoint_starts_at_its_beginning(tmp_path):
    run, said = RunFolder(tmp_path / "run"), []
    run.begin(to_toml(config(tmp_path)), resume=False)
    assert run.check(resume=True, overwrite=False, say=said.append) is None
    assert "starts at its beginning" in said[0]
    run.adapter.mkdir()  # it has come to its end: its checkpoints were removed
    with pytest.raises(FeraError, match="nothing to resume"):
        run.check(resume=True, overwrite=False)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), FeraError("cannot write the adapter")])
def test_a_failed_checkpoint_leaves_the_older_ones(tmp_path, error):
    run = RunFolder(tmp_path)
    save(run, 1, config(tmp_path))

    def fail(folder):
        write_adapter(folder)
        raise error

    with pytest.raises(
        FeraError, match=r"step-000002 cannot be written.*last good checkpoint is .*step-000001.*--resume"
    ):
        run.save_checkpoint(2, config(tmp_path), {}, fail, keep=1)
    assert names(run) == ["step-000001"], "half a checkpoint would be in the way of a full disk"
    assert run.latest_checkpoint().name == "step-000001"
    save(run, 2, config(tmp_path))
    assert run.latest_checkpoint().name == "step-000002"


def test_a_disk_that_is_full_only_when_synced(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    save(run, 1, config(tmp_path))

    def full(handle):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FeraError, match="step-000002 cannot be written: No space left on device"):
            save(run, 2, config(tmp_path), keep=1)
    assert names(run) == ["step-000001"]


def test_what_a_crash_left_is_swept_away(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 1, config(tmp_path))
    for left in (".step-000002.tmp", ".step-000000.old"):
        (run.checkpoints / left).mkdir()
    save(run, 2, config(tmp_path))
    assert names(run) == ["step-000001", "step-000002"]


def test_state_comes_back(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5, config(tmp_path, steps=7))
    state = read_state(run.latest_checkpoint())
    assert state["step"] == 5 and torch.equal(state["tensor"], torch.ones(2))
    assert read_config(run.latest_checkpoint())["train"]["steps"] == 7


def test_newer_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    save(run, 5, config(tmp_path))
    path = run.latest_checkpoint() / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(FeraError, match="newer fera"):
        read_config(run.latest_checkpoint())


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    run = RunFolder(tmp_path)
    save(run, 5, config(tmp_path))
    torch.save({"x": Evil()}, run.latest_checkpoint() / "state.pt")
    with pytest.raises(FeraError, match="cannot be read"):
        read_state(run.checkpoints / "step-000005")
    assert not (tmp_path / "pwned").exists()


def test_log_is_cut_back_to_the_checkpoint(tmp_path):
    run = RunFolder(tmp_path)
    run.log.write_text('{"step": 0}\n{"step": 10}\n')
    save(run, 10, config(tmp_path))
    length = read_state(run.latest_checkpoint())["log_bytes"]
    run.log.write_text('{"step": 0}\n{"step": 10}\n{"step": 10, "held_out_loss": 1}\n{"st')
    run.cut_log(length)
    assert run.log.read_text() == '{"step": 0}\n{"step": 10}\n'
    run.log.write_text('{"step": 0}\n{"st')  # lost since
    run.cut_log(length)
    assert run.log.read_text() == '{"step": 0}\n'
    run.log.unlink()
    run.cut_log(length)
    assert not run.log.exists()
