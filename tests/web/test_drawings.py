"""The page to draw on: what its form becomes, and what is shown of a drawing. No base is loaded here."""

import json
import os

import pytest
from adapter_cases import write_adapter
from PIL import Image
from report_cases import Page
from web_cases import do, wait_for, write_light_run

from fera.cli.generate import add_arguments
from fera.cli.main import _Parser
from fera.web.jobs import Queue

FORM = {"prompts": "a red heart\na cat's face", "steps": "8", "seed": "3"}


@pytest.fixture
def root(tmp_path):
    write_light_run(tmp_path / "root" / "runs" / "a")
    (tmp_path / "root" / "runs" / "a" / "adapter").mkdir()
    return tmp_path / "root"


@pytest.fixture
def queue(queue):
    """It starts nothing."""
    queue.tick = lambda: None
    return queue


def test_the_form_is_a_command_that_is_shown(client, root, queue):
    use = {"path": "runs/a", "weights": "0:1", "gate": [1, 1, 2], "experts": []}
    other = {"path": "runs/a", "weights": "", "gate": "routed", "experts": [0, 1, 0]}
    told = do(client, "draw-preview", **FORM, adapters=[use, other], compare_base=True, negative_prompt="--x").json()
    assert not (root / "drawings").exists()
    started = do(client, "draw", **FORM, adapters=[use, other], compare_base=True, negative_prompt="--x").json()
    assert started["name"] == "drawings/0001-a-red-heart"
    assert started["command"] == told["command"].replace("drawings/NEW", started["name"])
    parser = _Parser()
    add_arguments(parser)
    words = parser.parse_args(list(queue.jobs[0].command[1:]))
    assert words.prompts == ["a red heart", "a cat's face"] and words.adapters == ["runs/a=0:1", "runs/a=1"]
    assert words.gates == ["0.25,0.25,0.5", "routed"] and words.experts == ["all", "0,1,0"]
    assert words.compare_base and words.live and words.negative_prompt == "--x"
    assert (words.steps, words.seed, str(words.output)) == (8, 3, started["name"])


def test_drawings_wait_for_each_other_and_have_folders_of_their_own(client, root, tmp_path):
    names = [do(client, "draw", **FORM).json()["name"] for _ in range(3)]
    assert names == [f"drawings/000{number}-a-red-heart" for number in (1, 2, 3)]
    other = Queue(root, tmp_path / "other", program=("python3", "-c", "import time; time.sleep(30)"))
    try:
        for name in names:
            other.add(("generate", f"--output={name}"), "", trains=False, line="draw")
        other.tick()
        assert [job.state for job in other.jobs] == ["running", "queued", "queued"]
        other.stop(other.jobs[0].id)
        wait_for(lambda: other.tick() or other.jobs[1].state == "running")
        other.stop(other.jobs[1].id)
    finally:
        other.close()


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"prompts": ""}, "write a prompt"),
        ({"prompts": "--base=/etc"}, "cannot begin with a dash"),
        ({"prompts": 3}, "reload the page"),
        ({"prompts": "x" * 30_000}, "shorten it"),
        ({"steps": "many"}, "steps many is no whole number"),
        ({"guidance_scale": "nan"}, "is no number"),
        ({"base": "/etc"}, "is outside of"),
        ({"base": "../outside"}, "is outside of"),
        ({"sources": "a.png|/etc/hostname"}, "is outside of"),
        ({"precision": "fp8"}, "precision is one of"),
        ({"adapters": [{"path": "/etc", "weights": "1"}]}, "is outside of"),
        ({"adapters": [{"path": "linked/x", "weights": "1"}]}, "is outside of"),
        ({"adapters": [{"path": "runs/a", "weights": "much"}]}, "is no number"),
        ({"adapters": [{"path": "runs/a", "gate": [0, 0]}]}, "needs a weight above 0"),
        ({"adapters": [{"path": "runs/a", "gate": ["x"]}]}, "reload the page"),
        ({"adapters": [{"path": "runs/a", "gate": "--x"}]}, "reload the page"),
        ({"adapters": "x"}, "reload the page"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_starts(client, root, queue, form, told):
    os.symlink(root.parent, root / "linked")
    answer = do(client, "draw", **{**FORM, **form})
    assert answer.status_code == 400 and told in answer.json()["error"]
    assert queue.jobs == [] and not (root / "drawings").exists()


def test_a_drawing_shows_its_steps_and_what_it_became(client, root):
    name = do(client, "draw", **FORM, adapters=[{"path": "runs/a"}], compare_base=True).json()["name"]
    folder = root / name
    told = client.get("/draw/live", params={"name": name}).json()
    assert told["is_open"] and told["pictures"] == []
    (folder / "live").mkdir()
    line = {"row": "base", "picture": 0, "prompt": "<b>", "step": 1, "steps": 2, "preview": "000-base-001.jpg"}
    bad = [{**line, "preview": "../../../secret.jpg"}, {**line, "picture": "x"}, {**line, "row": "else"}, [1]]
    text = "".join(json.dumps(one) + "\n" for one in [line, *bad])
    (folder / "live" / "steps.jsonl").write_text(text + '{"row": "ba')  # being written
    Image.new("RGB", (8, 8), "red").save(folder / "000-base.png")
    (picture,) = client.get("/draw/live", params={"name": name}).json()["pictures"]
    assert [step["preview"] for step in picture["rows"]["base"]["steps"]] == [f"{name}/live/000-base-001.jpg", ""]
    assert picture["prompt"] == "<b>" and picture["rows"]["base"]["final"] == f"{name}/000-base.png"
    with (folder / "live" / "steps.jsonl").open("a") as file:
        file.write("\n" + json.dumps({**line, "row": "adapted", "gates": {"a": [0.2, 0.8]}}) + "\n")
    Image.new("RGB", (8, 8), "blue").save(folder / "000-base-base.png")  # of a prompt that says "base"
    (picture,) = client.get("/draw/live", params={"name": name}).json()["pictures"]
    assert picture["rows"]["adapted"]["final"].endswith("/000-base.png")
    assert picture["rows"]["base"]["final"].endswith("/000-base-base.png")
    assert picture["rows"]["adapted"]["steps"][0]["gates"] == {"a": [0.2, 0.8]}


def test_finished_ones_are_listed_with_their_grid(client, root):
    do(client, "draw", **FORM)
    Image.new("RGB", (600, 400), "red").save(root / "drawings" / "0001-a-red-heart" / "grid.png")
    shown = Page(client.get("/draw").text)
    assert "0001 a red heart" in shown.text
    small = client.get(next(image["src"] for image in shown.all("img")))
    assert small.headers["content-type"] == "image/webp" and len(small.content) < 2000


@pytest.mark.parametrize("name", ["runs/a", "../outside", "drawings/../runs/a", "drawings", "drawings/none"])
def test_only_drawings_are_shown_as_drawings(client, root, name):
    (root / "drawings").mkdir()
    assert client.get("/draw/live", params={"name": name}).status_code == 404


def test_an_adapter_says_how_many_experts_it_has(client, root):
    write_adapter("sd", root / "ink")
    assert client.get("/draw/adapter?path=ink").json()["experts"] == 3
    (root / "linked").mkdir()
    (root / "ink").rename(root.parent / "ink")
    os.symlink(root.parent / "ink" / "adapter_model.safetensors", root / "linked" / "adapter_model.safetensors")
    for path in ("none", "/etc", "owner/name", "runs/b", "linked"):
        assert client.get("/draw/adapter", params={"path": path}).status_code == 404


def test_clips_are_handed_out_in_parts(client, root):
    (root / "a.mp4").write_bytes(bytes(range(200)))
    part = client.get("/clip?path=a.mp4", headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == bytes(range(10, 20))
    (root / "a.txt").write_text("x")
    os.symlink("/etc/hostname", root / "b.mp4")
    for path in ("a.txt", "b.mp4", "none.mp4"):
        assert client.get("/clip", params={"path": path}).status_code == 404


def test_a_job_that_is_no_run_is_stopped(client, queue):
    job = do(client, "draw", **FORM).json()["job"]
    assert do(client, "cancel", job=job).json() == {"state": "stopped"}
    assert "has ended" in do(client, "cancel", job=job).json()["error"]
    run = queue.add(("train", "x"), "x", trains=True)
    assert do(client, "cancel", job=run.id).status_code == 400
