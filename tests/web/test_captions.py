"""Captions on the page: edits in a draft, what is saved, and captions by a model."""

import json

import pytest
from web_cases import Editor, make_client

from fera.web import draft as drafts
from fera.web.jobs import Queue


def caption(root, name):
    return (root / "data" / f"{name}.txt").read_text()


def test_edits_wait_until_they_are_saved(client, root):
    page = Editor(client)
    assert page.do("edit", name="b.png", caption="  a  dog\n") == {"version": 1, "unsaved": 1, "can_undo": True}
    assert caption(root, "b") == "a picture b\n"
    assert "a dog" in page.look().text and "not saved" in page.shown.text
    assert page.do("save")["said"] == "saved 1 caption"
    assert caption(root, "b") == "a dog\n" and caption(root, "a") == "a picture a\n"
    # The save itself is undone as an edit, which is saved in turn.
    assert "as before the last save" in page.do("undo")["said"]
    assert caption(root, "b") == "a dog\n"
    page.do("save")
    assert caption(root, "b") == "a picture b\n"


def test_find_and_replace_a_trigger_word_and_undo(client, root):
    page = Editor(client)
    assert page.do("replace", find="picture", replacement="drawing")["said"] == "changed 3 captions"
    assert page.do("replace", find="nowhere", replacement="x")["said"] == "no caption has it"
    assert page.do("trigger", word="inkstyle", search="drawing c")["said"] == "changed 1 caption"
    assert "inkstyle, a drawing c" in page.look(search="inkstyle").text and "drawing b" not in page.shown.text
    page.do("trigger", word="inkstyle")
    page.do("save")
    assert [caption(root, name) for name in "abc"] == [f"inkstyle, a drawing {name}\n" for name in "abc"]
    assert page.do("trigger", word="inkstyle")["said"] == "no caption lacks it"
    page.do("undo")
    page.do("save")
    assert [caption(root, name) for name in "abc"] == [f"a picture {name}\n" for name in "abc"]


def test_steps_are_undone_one_by_one(client):
    page = Editor(client)
    page.do("edit", name="a.png", caption="one")
    page.do("edit", name="a.png", caption="two")
    page.do("undo")
    assert "one" in page.look(search="one").text
    assert page.do("undo")["unsaved"] == 0
    assert "nothing to undo" in page.do("undo")["error"]
    page.do("edit", name="a.png", caption="three")
    assert page.do("discard")["unsaved"] == 0
    assert page.do("undo")["unsaved"] == 1


def test_a_draft_outlives_the_page(client, root, tmp_path):
    Editor(client).do("edit", name="a.png", caption="not lost")
    again = Queue(root, tmp_path / "other")
    again.folder = tmp_path / "kept"
    try:
        assert "not lost" in Editor(make_client(root, again)).look().text
    finally:
        again.close()


def test_two_pages_do_not_write_over_each_other(client, root):
    one, other = Editor(client), Editor(client)
    one.do("edit", name="a.png", caption="of one")
    assert "on another page meanwhile: reload this one" in other.do("edit", name="a.png", caption="of other")["error"]
    assert "of one" in other.look().text
    # And an editor elsewhere: what it wrote stays.
    (root / "data" / "a.txt").write_text("by hand")
    assert "was changed elsewhere meanwhile, to 'by hand'" in one.do("save")["error"]
    assert caption(root, "a") == "by hand" and one.look(only="changed").text.count("of one") == 1
    one.do("edit", name="a.png", caption="of both")
    assert one.do("save")["said"] == "saved 1 caption" and caption(root, "a") == "of both\n"


def test_a_caption_that_was_written_in_place_is_seen(client, root):
    Editor(client)
    with (root / "data" / "a.txt").open("r+") as file:
        file.write("A")
    assert "A picture a" in Editor(client).shown.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "x"}', '{"version": 1, "edits": {"a": 1}}'])
def test_a_damaged_draft_is_an_empty_one(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    held = drafts.Draft(tmp_path / "a.json")
    assert (held.version, held.edits, held.can_undo) == (0, {}, False)


def test_a_full_disk_loses_no_edit(client, root, monkeypatch):
    page = Editor(client)
    page.do("edit", name="a.png", caption="kept")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drafts, "replace_text", full)
    error = page.do("edit", name="b.png", caption="not kept")["error"]
    assert "No space left on device. Make room; your other edits are as they were" in error
    monkeypatch.undo()
    assert page.look().text.count("kept") == 1 and page.do("save")["said"] == "saved 1 caption"
    assert caption(root, "b") == "a picture b\n"


def test_a_folder_that_vanishes_is_told_and_edits_are_kept(client, root):
    page = Editor(client)
    page.do("edit", name="a.png", caption="kept")
    (root / "data").rename(root / "gone")
    assert "put it back, or choose another" in page.do("save")["error"]
    assert "put it back" in client.get("/data/rows?folder=data").text
    (root / "gone").rename(root / "data")
    assert page.do("save")["said"] == "saved 1 caption" and caption(root, "a") == "kept\n"


def test_captions_by_a_model_are_a_command(client, root, tmp_path, monkeypatch, queue):
    hub = tmp_path / "hub" / "models--me--describer" / "snapshots" / "x"
    hub.mkdir(parents=True)
    (hub / "config.json").write_text(json.dumps({"model_type": "blip"}))
    (hub / "model.safetensors").write_bytes(b"")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "me/describer" in client.get("/data?folder=data").text
    queue.tick = lambda: None
    page = Editor(client)
    told = page.do("caption", model=str(hub), prefix="ink,")
    assert told["command"] == f"fera data caption data --model={hub} --prefix=ink,"
    asked = page.do("caption", model=str(hub), question="-What is this?")["command"]
    assert asked == f"fera data caption data --model={hub} '--prompt=-What is this?'"
    assert "is outside of" in page.do("caption", model="/etc")["error"]
    page.do("edit", name="a.png", caption="x")
    assert "save or drop them first" in page.do("caption", model=str(hub))["error"]
