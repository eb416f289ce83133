"""The page that takes adapters out: forms to commands. What the commands do is tested where they are."""

import os

import pytest
from report_cases import Page
from web_cases import do, write_light_run

from fera.cli import export, merge, push
from fera.cli.main import _Parser
from fera.web.takeout import DTYPES, TOOLS


@pytest.fixture
def root(tmp_path):
    run = write_light_run(tmp_path / "root" / "runs" / "a")
    (run / "adapter").mkdir()
    (run / "gates.csv").write_text("")
    return tmp_path / "root"


@pytest.fixture
def queue(queue):
    """It starts nothing."""
    queue.tick = lambda: None
    return queue


def parsed(command, job):
    parser = _Parser()
    command.add_arguments(parser)
    return parser.parse_args(list(job.command[1:]))


def test_choices_are_the_commands(client):
    assert TOOLS == export.TOOLS and set(DTYPES) == set(export._DTYPES)
    shown = Page(client.get("/takeout").text)
    assert "runs/a/gates.csv" in shown.text


def test_forms_are_commands(client, root, queue):
    form = {"adapter": "runs/a", "tool": "kohya", "gate": "weights", "weights": "0.2,0.8", "dtype": "bf16"}
    told = do(client, "export", **form, base="emoji", prompts="a red heart\na cat").json()
    words = parsed(export, queue.jobs[0])
    assert (words.adapter, words.tool, words.gate, words.dtype) == ("runs/a", "kohya", "0.2,0.8", "bf16")
    assert (words.base, words.prompts) == ("emoji", ["a red heart", "a cat"])
    assert str(words.output) == "exports/a-kohya.safetensors" and str(words.output) in told["command"]
    # Again, while the first is under way: another file.
    do(client, "export", **form)
    assert str(parsed(export, queue.jobs[1]).output) == "exports/a-kohya-2.safetensors"
    do(client, "merge", adapter="runs/a", gate="trace", trace="runs/a/gates.csv", weight="0.5", prompts="a cat")
    words = parsed(merge, queue.jobs[2])
    assert (str(words.trace), words.weight, words.prompts) == ("runs/a/gates.csv", 0.5, ["a cat"])
    do(client, "push", adapter="runs/a", repo="me/style", private=True)
    words = parsed(push, queue.jobs[3])
    assert (words.repo_id, words.private) == ("me/style", True)
    assert {job.line for job in queue.jobs} == {"takeout"}
    assert "fera push runs/a me/style --private" in Page(client.get("/takeout").text).text


@pytest.mark.parametrize(
    ("what", "form", "told"),
    [
        ("export", {"adapter": ""}, "fill it in"),
        ("export", {"adapter": "/etc"}, "is outside of"),
        ("export", {"output": "../x.safetensors"}, "is outside of"),
        ("export", {"output": "linked/x.safetensors"}, "is outside of"),
        ("export", {"prompts": "a cat"}, "say with which base"),
        ("export", {"prompts": "--overwrite", "base": "emoji"}, "cannot begin with a dash"),
        ("export", {"tool": "--x"}, "tool is one of"),
        ("export", {"gate": "weights", "weights": "--x"}, "no list of numbers"),
        ("export", {"gate": "trace", "trace": "/etc/hostname"}, "is outside of"),
        ("merge", {"weight": "much"}, "is no number"),
        ("merge", {"dtype": "fp8"}, "a precision is one of"),
        ("push", {"repo": "--private"}, "write owner/name"),
        ("push", {"repo": "me"}, "write owner/name"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_starts(client, root, queue, what, form, told):
    os.symlink(root.parent, root / "linked")
    answer = do(client, what, **{"adapter": "runs/a", **form})
    assert answer.status_code == 400 and told in answer.json()["error"]
    assert queue.jobs == []
