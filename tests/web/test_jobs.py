"""Commands as processes of their own: one run at a time, past the page's end, stopped gently, kept whole."""

import errno
import json
import os
import signal
import sys
from contextlib import suppress

import pytest
from web_cases import WORDS, wait_for

from fera.errors import FeraError
from fera.web import jobs
from fera.web.jobs import OPEN, Queue

PROGRAM = (sys.executable, "-c", WORDS)


@pytest.fixture
def open_queue(tmp_path):
    """Opens the queue of a folder, as a page that starts does; what was started is ended with the test."""
    opened = []

    def open_():
        opened.append(Queue(tmp_path, tmp_path / "kept", PROGRAM))
        return opened[-1]

    yield open_
    for job in opened[-1].jobs:
        if job.state in ("running", "stopping") and job.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(job.pid, signal.SIGKILL)
    for queue in opened:
        queue.close()


def states(queue):
    queue.tick()
    return [job.state for job in queue.jobs]


def test_one_run_at_a_time_and_the_next_follows(open_queue):
    queue = open_queue()
    first = queue.add(("train", "wait"), "a", trains=True)
    queue.add(("train",), "b", trains=True)
    queue.add(("report",), "a", trains=False)
    assert states(queue) == ["running", "queued", "running"]
    wait_for(lambda: "train wait" in queue.output(first.id))
    with pytest.raises(FeraError, match="a is in the queue already"):
        queue.add(("train",), "a", trains=True)
    assert queue.stop(first.id).state == "stopping"
    assert wait_for(lambda: (now := states(queue)) == ["stopped", "done", "done"] and now)
    assert [job.code for job in queue.jobs] == [0, 0, 0]
    with pytest.raises(FeraError, match="has ended"):
        queue.stop(first.id)


def test_a_failure_is_told(open_queue):
    queue = open_queue()
    job = queue.add(("train", "fail"), "a", trains=True)
    wait_for(lambda: states(queue) == ["failed"])
    assert queue.output(job.id).splitlines() == ["train fail", "error: it was told to fail"]


def test_a_waiting_one_leaves_the_line(open_queue):
    queue = open_queue()
    job = queue.add(("train",), "a", trains=True)
    assert queue.stop(job.id).state == "stopped"
    assert states(queue) == ["stopped"] and not queue.output(job.id)


def test_runs_go_on_without_the_page_and_the_queue_is_there_again(open_queue):
    queue = open_queue()
    first = queue.add(("train", "wait"), "a", trains=True)
    queue.add(("train", "fail"), "b", trains=True)
    queue.tick()
    wait_for(lambda: queue.output(first.id))
    queue.close()  # as when the page is killed: nothing is told to anybody

    again = open_queue()
    assert states(again) == ["running", "queued"]
    assert again.output(first.id) == "train wait\n"
    again.stop(first.id)
    # The former page would reap it; with that page gone, the system does.
    wait_for(lambda: not queue._is_alive(first))
    wait_for(lambda: states(again) == ["stopped", "failed"])


def test_what_ended_without_the_page_is_known_by_its_words(open_queue):
    queue = open_queue()
    queue.add(("report", "fail"), "a", trains=False)
    queue.add(("report",), "b", trains=False)
    queue.tick()
    queue.close()
    for process in queue._processes.values():
        process.wait()
    assert states(open_queue()) == ["failed", "done"]


def test_a_killed_run_does_not_hold_the_line(open_queue):
    queue = open_queue()
    job = queue.add(("train", "wait"), "a", trains=True)
    queue.add(("train",), "b", trains=True)
    queue.tick()
    os.kill(queue.last_of("a").pid, signal.SIGKILL)
    wait_for(lambda: states(queue) == ["failed", "done"])
    assert queue.last_of("a").id == job.id and queue.last_of("a").code == -signal.SIGKILL


def test_one_page_a_folder(open_queue):
    open_queue()
    with pytest.raises(FeraError, match="another `fera web` has"):
        open_queue()


@pytest.mark.parametrize("text", ["", "{", "[3]", '[{"id": "../x", "command": []}]', '{"a": 1}', "[" * 5000])
def test_a_damaged_queue_is_an_empty_one(open_queue, tmp_path, text):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "queue.json").write_text(text)
    queue = open_queue()
    assert queue.jobs == []
    assert states(queue) == []


def test_a_full_disk_starts_nothing_and_loses_nothing(open_queue, tmp_path, monkeypatch):
    queue = open_queue()
    queue.add(("train", "wait"), "a", trains=True)
    queue.tick()
    before = json.loads((tmp_path / "kept" / "queue.json").read_text())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(jobs, "replace_text", full)
    with pytest.raises(FeraError, match="No space left on device. Nothing was started"):
        queue.add(("train",), "b", trains=True)
    assert [job.run for job in queue.jobs] == ["a"]
    assert json.loads((tmp_path / "kept" / "queue.json").read_text()) == before
    queue.stop(queue.jobs[0].id)  # a full disk keeps nobody from stopping
    wait_for(lambda: queue.tick() or queue.jobs[0].state not in OPEN)
    assert "Make room" in queue.note
