"""What a machine can refuse in the midst of a run: disk, memory, a steady clock."""

import errno
import os
import resource
import sys
import time
from pathlib import Path

import pytest
import torch
from crash_cases import run as in_child
from listeners import train
from training_cases import run_config

from fera import FeraError
from fera.cli.main import main
from fera.pipelines.base import load_base
from fera.pipelines.memory import Held, held
from fera.training import TrainConfig, memory_advice, to_toml
from fera.training.failures import failures_explained, is_out_of_memory, memory_hint
from fera.training.folder.run_folder import RunFolder
from fera.training.memory_advice import bytes_asked, first_that_fits, fitting_named
from fera.training.telling.reporter import Reporter
from fera.training.trainer import Trainer


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    def make(name: str = "run", **sections: object) -> TrainConfig:
        sections["train"] = {"steps": 4, "batch_size": 1, "checkpointing_steps": 2} | sections.get("train", {})
        sections.setdefault("adapter", {"target_modules": ["to_q"]})
        return run_config(tiny_sd_dir, image_folder, tmp_path / name, **sections)

    return make


@pytest.fixture
def command(tmp_path):
    """Run `fera train` in a forked process with a limit on the size of files, a real "file too large"."""

    def call(config: TrainConfig, limit_from: tuple[str, int]) -> tuple[int, str]:
        (tmp_path / "run.toml").write_text(to_toml(config))
        method, step = limit_from
        real = getattr(Trainer, method)

        def limited(self, *arguments, **options):
            if self.step == step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
            return real(self, *arguments, **options)

        # What is said goes through a pipe, which has no limit.
        reader, writer = os.pipe()

        def work() -> None:
            os.dup2(writer, 2)
            setattr(Trainer, method, limited)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            sys.exit(main(["train", str(tmp_path / "run.toml")]))

        code = in_child(work)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as said:
            return code, " ".join(said.read().split())

    return call


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_full_disk_at_a_checkpoint(configure, command):
    config = configure()
    code, message = command(config, ("save_checkpoint", 4))
    assert code == 2 and "Traceback" not in message
    assert "step-000004 cannot be written" in message and "File too large" in message
    good = config.output_dir / "checkpoints" / "step-000002"
    assert f"The last good checkpoint is {good}" in message and "--resume" in message
    assert RunFolder(config.output_dir).latest_checkpoint() == good
    assert [path.name for path in good.parent.iterdir()] == [good.name]
    assert train(config, resume=True).steps == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("method", "step", "expected", "sections"),
    [
        ("finish", 4, "adapter", {}),
        ("advance", 3, "log.jsonl", {"train": {"checkpointing_steps": 1}}),
        ("validate", 4, "step-000004.png", {"validation": {"prompts": ["a tree"], "num_inference_steps": 1}}),
    ],
)
def test_full_disk_elsewhere(configure, command, method, step, expected, sections):
    config = configure(**sections)
    if expected == "log.jsonl":
        config.output_dir.mkdir()
        real = Reporter.write
        padded = {"padding": "x" * 200}  # a few lines reach the limit
        Reporter.write = lambda self, record, *more: real(self, record | padded, *more)  # type: ignore[method-assign]
    try:
        code, message = command(config, (method, step))
    finally:
        if expected == "log.jsonl":
            Reporter.write = real  # type: ignore[method-assign]
    assert code == 2 and "Traceback" not in message
    assert expected in message and "File too large" in message
    latest = RunFolder(config.output_dir).latest_checkpoint()
    assert latest is not None
    assert f"The last good checkpoint is {latest}" in message


def test_full_disk_in_the_cache(configure, monkeypatch, tmp_path):
    def full(tensors, path, *rest, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = configure()
    with monkeypatch.context() as patch:
        patch.setattr("fera.data.cache.store.save_file", full)
        with pytest.raises(FeraError, match=r"cannot write to the cache, .*No space left on device.*data\.cache_dir"):
            train(config)
    assert not list((tmp_path / "cache").iterdir()), "nothing half-written stays"
    assert not config.output_dir.exists()


def test_output_that_cannot_be_written(configure, monkeypatch, tmp_path, capsys):
    """Said before anything is loaded, not after hours."""
    (tmp_path / "run.toml").write_text(to_toml(configure()))
    real = os.mkdir

    def read_only(path, *rest, **options):
        if str(path) == str(tmp_path / "run"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "mkdir", read_only)
    monkeypatch.setattr("fera.training.run.prepare", None)
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"cannot write to output_dir {tmp_path / 'run'}: Read-only file system" in message


@pytest.mark.parametrize(
    ("place", "name", "expected"),
    [
        (
            "training.start.opening.add_masks",
            "0.png",
            r"1 pictures? of 4 cannot be used: .*0\.png does not exist|0\.png does not exist",
        ),
        ("data.sources.flat.read_text", "0.txt", r"caption file .*0\.txt cannot be read: No such file"),
        ("data.cache.latents.pixels_of", "0.png", r"0\.png.*readable a moment ago"),
    ],
    ids=["listed", "caption", "checked"],
)
def test_a_file_of_the_data_vanishes(configure, monkeypatch, image_folder, place, name, expected):
    """Between listing and reading, and between checking and encoding."""
    module, _, function = f"fera.{place}".rpartition(".")
    real = getattr(sys.modules[module], function)

    def vanishing(*arguments):
        (image_folder / name).unlink(missing_ok=True)
        return real(*arguments)

    monkeypatch.setattr(sys.modules[module], function, vanishing)
    config = configure(train={"steps": 1})
    with pytest.raises(FeraError, match=expected):
        train(config)
    assert not config.output_dir.exists()


def test_a_mask_that_vanishes_is_what_is_named(image_folder, tmp_path):
    from fera.data.checking import sift_images
    from fera.data.example import Example

    _, bad = sift_images([Example(image_folder / "0.png", "x", mask=tmp_path / "mask.png")])
    assert "mask.png" in bad[0] and "0.png does not exist" not in bad[0]


def no_memory() -> None:
    torch.empty(2**50)  # what the CPU's allocator says


def no_memory_on_the_accelerator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def no_memory_in_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [no_memory, no_memory_on_the_accelerator, no_memory_in_python])
def test_memory_errors_are_known(fail, configure):
    with pytest.raises(FeraError, match=r"the memory does not suffice.*kept"):
        with failures_explained(configure(), lambda: "kept"):
            fail()


def test_the_first_way_that_fits_is_named(configure):
    """Of a denoiser of 20 bytes and 10 of all else."""
    ways = [Held("none", "none", 20), Held("8bit", "none", 10), Held("4bit", "none", 6), Held("none", "blocks", 4)]
    for total, way in ((40, 'quantization = "8bit"'), (20, 'quantization = "4bit"'), (15, 'train.offload = "blocks"')):
        expected = f"Of the ways to hold the base, {way} is the first that would have fit"
        assert first_that_fits(ways, ways[0], 30, total) == expected
    assert first_that_fits(ways, ways[0], 30, 14).startswith("No other way")
    assert first_that_fits(ways, ways[2], 16, 15) == first_that_fits(ways, ways[0], 30, 15)
    assert bytes_asked("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0") == 3 * 2**29
    assert bytes_asked("CUDA out of memory. Tried to allocate 20.00 MiB") == 20 * 2**20
    assert bytes_asked("DefaultCPUAllocator: can't allocate memory") == 0


def test_a_run_that_lacks_memory_notes_what_fits(configure, tiny_sd_dir, monkeypatch):
    unet = load_base(str(tiny_sd_dir)).unet
    size = held(unet, torch.float32).device_bytes
    monkeypatch.setattr(memory_advice, "device_memory", lambda device: int(0.9 * size))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: size)
    for error in (MemoryError(), torch.OutOfMemoryError("Tried to allocate 1.00 KiB"), RuntimeError("shape")):
        with pytest.raises(type(error)) as raised, fitting_named(unet, configure(), torch.device("cuda")):
            raise error
        notes = getattr(raised.value, "__notes__", [])
        if str(error) == "shape":
            assert notes == []
        else:
            assert notes == ['Of the ways to hold the base, quantization = "8bit" is the first that would have fit']
    with (
        pytest.raises(MemoryError) as raised,
        fitting_named(unet, configure(quantization="4bit"), torch.device("cuda")),
    ):
        raise MemoryError
    assert not hasattr(raised.value, "__notes__")


def test_what_fits_is_said_with_the_error(configure):
    with pytest.raises(FeraError, match=r"does not suffice\. 4 bits would fit\. In this order"):
        with failures_explained(configure(), lambda: "kept"):
            error = MemoryError()
            error.add_note("4 bits would fit")
            raise error


def test_other_errors_are_left_alone(configure):
    for error in (RuntimeError("shape mismatch"), OSError("no number"), KeyError("x"), FeraError("said")):
        with pytest.raises(type(error)) as raised, failures_explained(configure(), lambda: "kept"):
            raise error
        assert raised.value is error
    assert not is_out_of_memory(ValueError("out of memory"))


def test_hints_name_what_is_not_done_yet(configure):
    hint = memory_hint(configure(train={"batch_size": 4}, data={"resolution": 16}))
    order = [
        "train.batch_size (it is 4",
        "gradient_checkpointing",
        "train.offload",
        "mixed_precision",
        "resolution (it is 16)",
        "adapter.r",
    ]
    places = [hint.index(text) for text in order]
    assert places == sorted(places)
    done = {"batch_size": 1, "gradient_checkpointing": True, "mixed_precision": "bf16", "offload": "blocks"}
    hint = memory_hint(configure(train=done))
    assert not any(name in hint for name in ("batch_size", "gradient_checkpointing", "mixed_precision", "offload"))


def test_memory_runs_out_in_a_step(configure, monkeypatch, tmp_path, capsys):
    (tmp_path / "run.toml").write_text(to_toml(configure()))
    real = Trainer._losses

    def losses(self, *arguments):
        if self.step == 3:
            no_memory()
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, "_losses", losses)
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "the memory does not suffice" in message and "step-000002; go on from it" in message
    monkeypatch.undo()
    assert main(["train", str(tmp_path / "run" / "config.toml"), "--resume"]) == 0


def test_a_clock_that_goes_backwards(configure, monkeypatch):
    now = [2e9]

    def backwards() -> float:
        now[0] -= 1000
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    summary = train(configure())
    assert 0 < summary.training_seconds <= summary.seconds < 100 and summary.samples_per_second > 0
