"""What the pages show, and what their buttons put in line."""

import json
import os
import shutil
import signal
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from report_cases import Page
from web_cases import WORDS, do, make_client, wait_for, write_light_run

from fera.config.keys import keys
from fera.config.reading import load_config
from fera.training import TrainConfig
from fera.web import runs
from fera.web.form import form, presets, read_form, to_short_toml, values_of
from fera.web.jobs import Queue

VALUES = {"base": "emoji", "output_dir": "runs/new", "data.train_data_dir": "data", "train.steps": "50"}


@pytest.fixture
def root(tmp_path):
    write_light_run(tmp_path / "root" / "runs" / "a")
    write_light_run(tmp_path / "root" / "runs" / "b", finished=False, gates=None)
    return tmp_path / "root"


@pytest.fixture
def queue(queue):
    """It starts nothing."""
    queue.tick = lambda: None
    return queue


def page(client, url):
    answer = client.get(url)
    assert answer.status_code == 200, answer.text
    return Page(answer.text)


def test_the_list_says_how_far_each_run_is(client, root):
    (root / "runs" / "no run").mkdir()
    os.symlink(root / "runs" / "a", root / "runs" / "link")
    text = page(client, "/").text
    assert "runs/a finished 40 / 40 0.8000 0.8000 0.20 0.50 0.30" in text
    assert "runs/b stopped 40 / 40 0.8000 0.8000" in text
    assert "link" not in text and "no run" not in text


def test_a_run_elsewhere_is_seen_and_not_stopped_here(client, root):
    holder = {"pid": os.getpid(), "host": os.uname().nodename, "since": "now"}
    (root / "runs" / "b" / ".lock").write_text(json.dumps(holder))
    shown = page(client, "/run?name=runs/b")
    assert "running in another terminal" in shown.text
    assert "stop" not in [button.get("data-do") for button in shown.all("button")]
    assert "was not started here" in do(client, "stop", run="runs/b").json()["error"]
    assert "cannot go on: it is running" in do(client, "resume", run="runs/b").json()["error"]


PIDS = ('"x"', 0, -1, 4194305)


@pytest.mark.parametrize("lock", ["", "{}", "[]", *(f'{{"pid": {pid}, "host": "HERE"}}' for pid in PIDS)])
def test_a_lock_that_was_left_says_stopped(client, root, lock):
    """As after a kill: its process is not there."""
    (root / "runs" / "b" / ".lock").write_text(lock.replace("HERE", os.uname().nodename))
    assert "runs/b stopped" in page(client, "/").text


def test_curves_and_gates_of_a_run_move_with_its_log(client, root):
    shown = page(client, "/run?name=runs/a")
    labels = " ".join(svg["aria-label"] for svg in shown.all("svg"))
    for title in ("Training loss", "Held-out loss", "Learning rate", "Use of the experts", "Entropy of the gate"):
        assert title in labels
    before = client.get("/run/charts?name=runs/a").text
    assert client.get("/run/charts?name=runs/a").text == before
    with (root / "runs" / "a" / "log.jsonl").open("a") as log:
        log.write('{"step": 50, "loss": 0.7, "gates": [0.1, 0.1, 0.8]}\n{"step": 60, "lo')  # being written
    after = client.get("/run/charts?name=runs/a").text
    assert after != before and "step 50 · loss 0.7 · gates 0.10 0.10 0.80" in after
    assert "step 50 of 40" in page(client, "/run?name=runs/a").text


def test_samples_come_in_order_and_are_handed_out(client, root):
    folder = root / "runs" / "a" / "samples"
    folder.mkdir()
    for step, colour in ((0, "white"), (20, "red"), (40, "black")):
        Image.new("RGB", (8, 8), colour).save(folder / f"step-{step:06d}.png")
    (folder / "step-x.png").write_bytes(b"")
    figures = page(client, "/run/samples?name=runs/a")
    assert [figure["data-step"] for figure in figures.all("figure")] == ["0", "20", "40"]
    assert [figure.get("hidden") is None for figure in figures.all("figure")] == [False, False, True]
    newest = client.get(figures.all("img")[-1]["src"])
    assert newest.content == (folder / "step-000040.png").read_bytes()
    assert newest.headers["content-type"] == "image/png"


def test_runs_side_by_side(client, root):
    config = (root / "runs" / "b" / "config.toml").read_text()
    (root / "runs" / "b" / "config.toml").write_text(config.replace("steps = 40", "steps = 70"))
    shown = page(client, "/compare?run=runs/a&run=runs/b")
    assert "train.steps 40 70" in shown.text
    assert "Held-out loss of runs/a, runs/b" in " ".join(svg["aria-label"] for svg in shown.all("svg"))
    for query in ("", "?run=runs/a", "?" + "&".join(f"run=r{n}" for n in range(9))):
        assert client.get(f"/compare{query}").status_code == 404


def test_a_folder_that_vanishes_is_told(client, root):
    shutil.rmtree(root / "runs" / "a")
    answer = client.get("/run?name=runs/a")
    assert answer.status_code == 404 and "there is no run runs/a any more" in answer.text
    assert 'role="alert"' in client.get("/run/live?name=runs/a").text
    shutil.rmtree(root)
    assert "is gone. Put it back" in client.get("/").text


def test_a_run_that_loses_its_folder_or_is_killed_is_told(root, tmp_path):
    queue = Queue(root, tmp_path / "other", [sys.executable, "-c", WORDS])
    client = make_client(root, queue)
    try:
        queue.add(("train", "wait"), "runs/new", trains=True)
        assert "is gone" not in page(client, "/run?name=runs/new").text  # it waits
        queue.tick()
        job = queue.last_of("runs/new")
        wait_for(lambda: queue.output(job.id))
        assert "is gone while its run goes on" in page(client, "/run?name=runs/new").text
        os.kill(job.pid, signal.SIGKILL)
        wait_for(lambda: queue.tick() or queue.last_of("runs/new").state == "failed")
        assert "ended without a word" in page(client, "/run?name=runs/new").text
        queue.add(("train", "fail"), "runs/other", trains=True)
        wait_for(lambda: queue.tick() or queue.last_of("runs/other").state == "failed")
        shown = page(client, "/run?name=runs/other").text
        assert "error: it was told to fail" in shown and "without a word" not in shown
    finally:
        queue.close()


def test_what_did_not_change_is_not_read_again(client, root):
    for number in range(20):
        write_light_run(root / "runs" / f"n{number}")
    client.get("/runs/rows")
    misses = runs._last_values.cache_info().misses, runs._configured_steps.cache_info().misses
    client.get("/runs/rows")
    assert (runs._last_values.cache_info().misses, runs._configured_steps.cache_info().misses) == misses


def test_every_key_is_a_field_and_every_field_has_help(client):
    shown = page(client, "/train")
    named = {one["name"]: one for tag in ("input", "select", "textarea") for one in shown.all(tag)}
    helped = {one["id"] for one in shown.all("p") if "id" in one}
    for key in keys():
        assert named[key.name]["aria-describedby"] in helped
        assert key.expects in shown.text
    assert "](" not in shown.text  # links of the docs lead nowhere here
    labelled = {one["for"] for one in shown.all("label")}
    assert set(named) - labelled == set()


@pytest.mark.parametrize("name", presets())
def test_a_preset_goes_through_the_form_unchanged(name):
    config = load_config(presets()[name])
    values = {one.name: one.value for fields in form(values_of(config)).values() for one in fields}
    assert read_form(values) == config


def test_presets_are_the_examples_and_are_shipped():
    top = Path(__file__).parents[2]
    assert {path.resolve() for path in presets().values()} == set((top / "examples").resolve().glob("*.toml"))
    wheel = tomllib.loads((top / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"examples": "fera/web/presets"}


def test_what_is_written_holds_what_differs_alone(tmp_path):
    config = read_form(
        {**VALUES, "train.learning_rate": "1e-4", "validation.prompts": "a cat\r\n\r\n a dog ", "seed": ""}
    )
    text = to_short_toml(config)
    assert tomllib.loads(text) == {
        "base": "emoji",
        "output_dir": "runs/new",
        "data": {"train_data_dir": "data"},
        "train": {"steps": 50},
        "validation": {"prompts": ["a cat", "a dog"]},
    }
    (tmp_path / "c.toml").write_text(text)
    assert load_config(tmp_path / "c.toml") == config


def test_starting_writes_the_file_and_shows_the_command(client, root, queue):
    preview = do(client, "preview", values=VALUES).json()
    assert not (root / "configs").exists()
    told = do(client, "train", values=VALUES).json()
    assert told == {"run": "runs/new", "command": "fera train configs/new.toml"}
    assert told["command"] == preview["command"]
    assert (root / "configs" / "new.toml").read_text() == preview["toml"]
    assert "runs/new waiting for its turn" in page(client, "/").text
    assert "fera train configs/new.toml" in page(client, "/run?name=runs/new").text
    # Twice, as from two pages: the second hears of the first, and nothing is written over.
    assert "in the queue already" in do(client, "train", values={**VALUES, "seed": "1"}).json()["error"]
    assert (root / "configs" / "new.toml").read_text() == preview["toml"]
    assert do(client, "stop", run="runs/new").json() == {"state": "stopped"}


def test_a_run_is_not_replaced_but_goes_on(client, root, queue):
    assert "already holds a run" in do(client, "train", values={**VALUES, "output_dir": "runs/b"}).json()["error"]
    config = (root / "runs" / "b" / "config.toml").read_text()
    assert "the folder was moved" in do(client, "resume", run="runs/b").json()["error"]
    (root / "runs" / "b" / "config.toml").write_text(config.replace('"b"', '"runs/b"'))
    assert do(client, "resume", run="runs/b").json()["command"] == "fera train runs/b/config.toml --resume"
    assert "cannot go on: it is waiting" in do(client, "resume", run="runs/b").json()["error"]
    assert "cannot go on: it is finished" in do(client, "resume", run="runs/a").json()["error"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train.steps": "many"}, 'train.steps = "many": expected integer, at least 1'),
        ({"train.steps": "0"}, "train.steps = 0: expected integer, at least 1"),
        ({"base": ""}, "missing key base: fill it in"),
        ({"train.stepz": "3"}, "did you mean"),
        ({"train.optimizer_args": "{"}, "expected table"),
        ({"seed": 3}, "reload the page"),
    ],
)
def test_mistakes_in_the_form_are_one_sentence(client, queue, values, told):
    answer = do(client, "train", values={**VALUES, **values})
    assert answer.status_code == 400 and told in answer.json()["error"]
    assert "--" not in answer.json()["error"] and queue.jobs == []


def test_reports_and_checks_need_no_turn(client, queue):
    do(client, "train", values=VALUES)
    do(client, "report", run="runs/a")
    job = do(client, "check", values={**VALUES, "seed": "2"}).json()["job"]
    assert [(one.text, one.trains) for one in queue.jobs[1:]] == [
        ("fera report runs/a --no-draw", False),
        ("fera data check configs/new-2.toml", False),
    ]
    assert client.get("/job", params={"id": job}).json()["is_open"] is True
    assert client.get("/job", params={"id": "../x"}).status_code == 404


def test_stages_come_back_from_a_form():
    stages = [{"train_data_dir": "a", "weight": 2.5}, {"train_data_dir": "b", "target": True, "name": "x"}]
    config = TrainConfig.model_validate({"base": "b", "output_dir": "o", "data": {"stages": stages}})
    values = values_of(config)
    assert read_form(values) == config
    assert read_form({name: value.replace("\n", "\r\n") for name, value in values.items()}) == config
