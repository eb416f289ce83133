"""One run in a folder at a time."""

import json
import os
import re
import signal
import socket
import time

import pytest
from crash_cases import outcome, run, start

from fera import FeraError
from fera.cli.main import main
from fera.training.folder.lock import LOCK, run_lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def hold(folder, seconds: float = 60) -> int:
    """A process that holds a folder; returns when it does."""

    def holding() -> None:
        with run_lock(folder, print):
            (folder / "held").touch()
            time.sleep(seconds)

    pid = start(holding)
    while not (folder / "held").exists():
        time.sleep(0.005)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    outcome(pid)


def test_the_second_is_told_who_holds_it(tmp_path):
    pid = hold(tmp_path)
    try:
        with pytest.raises(FeraError) as refused, run_lock(tmp_path, print):
            pass
        message = str(refused.value)
        assert f"process {pid} on {socket.gethostname()}, since 20" in message
        assert f"kill {pid}" in message and "another output_dir" in message
    finally:
        end(pid)


def test_a_second_training_is_refused_before_it_loads_anything(tmp_path, monkeypatch, capsys):
    flags = ["--base=b", f"--output_dir={tmp_path / 'run'}", f"--data.train_data_dir={tmp_path}", "--overwrite"]
    monkeypatch.setattr("fera.training.run.prepare", None)
    with run_lock(tmp_path / "run", print):
        (tmp_path / "run" / "log.jsonl").write_text("{}")
        assert main(["train", *flags]) == 2
        assert (tmp_path / "run" / "log.jsonl").exists()
    assert f"in use by another run: process {os.getpid()}" in " ".join(capsys.readouterr().err.split())


def test_a_killed_process_blocks_nobody(tmp_path):
    end(hold(tmp_path))
    assert (tmp_path / LOCK).exists(), "it had no time to clean up"
    with run_lock(tmp_path, print):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_it_leaves_the_folder_as_it_was(tmp_path):
    with run_lock(tmp_path / "runs" / "style", print):
        assert (tmp_path / "runs" / "style" / LOCK).exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / "runs").mkdir()
    with pytest.raises(RuntimeError), run_lock(tmp_path / "runs" / "style", print):
        (tmp_path / "runs" / "style" / "log.jsonl").touch()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "runs" / "style").iterdir()] == ["log.jsonl"]


def test_an_unreadable_note_of_the_holder(tmp_path):
    with run_lock(tmp_path, print):
        (tmp_path / LOCK).write_text("{")
        with pytest.raises(FeraError, match="by another run: another process"), run_lock(tmp_path, print):
            pass


def test_many_that_come_and_go_exclude_each_other(tmp_path):
    """The file is removed by each holder, so that opening it and locking it must not fall apart."""
    folder, shared = tmp_path / "run", tmp_path / "count"
    shared.write_text("0")

    def work() -> None:
        done = 0
        while done < 25:
            try:
                with run_lock(folder, print):
                    count = int(shared.read_text())
                    time.sleep(0.0002)
                    shared.write_text(str(count + 1))
                    done += 1
            except FeraError:
                time.sleep(0.0001)

    children = [start(work) for _ in range(4)]
    assert [outcome(child) for child in children] == [0] * 4
    assert shared.read_text() == "100"


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").touch()
    for folder in (tmp_path / "out", tmp_path / "out" / "run"):
        with pytest.raises(FeraError, match="is a file"), run_lock(folder, print):
            pass


def test_a_folder_that_cannot_be_written():
    import tempfile
    from pathlib import Path

    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)

    def refused() -> None:
        if os.getuid() == 0:
            os.setuid(65534)  # nothing stops root
        for target in (folder, folder / "run"):
            with pytest.raises(
                FeraError, match=f"cannot write to output_dir {re.escape(str(target))}: Permission denied"
            ):
                with run_lock(target, print):
                    pass

    try:
        assert run(refused) == 0
    finally:
        folder.rmdir()


def test_a_file_system_without_locks_says_so(tmp_path, monkeypatch):
    import errno

    def none(file) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fera.training.folder.lock._lock", none)
    said: list[str] = []
    with run_lock(tmp_path, said.append):
        assert "without locks" in said[0]
