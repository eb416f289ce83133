"""The page about data: files that are dropped in, captions in a draft, what a check says, masks."""

import io
import json
import os
import shutil

import pytest
from PIL import Image
from report_cases import Page
from web_cases import ADDRESS, do, make_client, wait_for, write_light_run

from fera.web import draft as drafts
from fera.web import uploads
from fera.web.guard import MOST_UPLOAD
from fera.web.jobs import Queue

BYTES = {"Content-Type": "application/octet-stream", "Origin": ADDRESS}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    data = root / "data"
    data.mkdir(parents=True)
    write_light_run(root / "runs" / "a")
    for number, name in enumerate(("a", "b", "c")):
        Image.new("RGB", (40, 20), (number, 200, 0)).save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"a picture {name}\n")
    return root


@pytest.fixture
def queue(tmp_path, root):
    queue = Queue(root, tmp_path / "kept")
    yield queue
    queue.close()


@pytest.fixture
def client(root, queue):
    return make_client(root, queue)


class Editor:
    """A page that edits."""

    def __init__(self, client, folder="data"):
        self.client, self.folder = client, folder
        self.look()

    def look(self, **query):
        answer = self.client.get("/data/rows", params={"folder": self.folder, **query})
        assert answer.status_code == 200
        self.shown = Page(answer.text)
        self.version = int(next(one["data-version"] for one in self.shown.all("div") if "data-version" in one))
        return self.shown

    def do(self, what, **more):
        answer = do(self.client, f"data-{what}", folder=self.folder, version=self.version, **more)
        if answer.status_code == 200:
            self.version = answer.json().get("version", self.version)
        return answer.json()


def caption(root, name):
    return (root / "data" / f"{name}.txt").read_text()


def png(size=(40, 20), colour=255, mode="L"):
    held = io.BytesIO()
    Image.new(mode, size, colour).save(held, "PNG")
    return held.getvalue()


def noise():
    held = io.BytesIO()
    Image.effect_noise((32, 32), 90).save(held, "PNG")
    return held.getvalue()


def upload(client, content, name="new.png", folder="data", **headers):
    return client.post(
        "/data/upload", params={"folder": folder, "name": name}, content=content, headers={**BYTES, **headers}
    )


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_folders_are_offered_and_one_is_shown(client):
    assert "data" in [one["value"] for one in Page(client.get("/data").text).all("option")]
    shown = Page(client.get("/data?folder=data").text)
    assert "3 pictures" in shown.text and "a picture b" in shown.text
    assert "No model that describes pictures" in shown.text


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


def test_pictures_and_captions_are_dropped_in(client, root):
    content = png((8, 8))
    assert upload(client, content).json() == {"said": "new.png is in"}
    assert upload(client, b"a new one", "new.txt").json() == {"said": "new.txt is in"}
    assert (root / "data" / "new.png").read_bytes() == content
    assert (root / "data" / "new.png").stat().st_mode & 0o777 == (root / "data" / "a.png").stat().st_mode & 0o777
    assert "4 pictures" in Editor(client).shown.text and "a new one" in Editor(client).shown.text
    assert upload(client, content).json() == {"said": "new.png was there already"}
    assert "has another new.png, which stays" in upload(client, png((9, 9))).json()["error"]
    assert (root / "data" / "new.png").read_bytes() == content


def test_an_empty_folder_is_made_and_filled(client, root):
    assert do(client, "data-folder", folder="more/pictures").json() == {"folder": "more/pictures"}
    assert "no pictures in" in client.get("/data?folder=more/pictures").text
    assert upload(client, png(), folder="more/pictures").status_code == 200
    assert do(client, "data-folder", folder="../outside").status_code == 400 and not (root.parent / "outside").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.png", b"no picture", "is no picture that can be read"),
        ("a.png", b"", "is empty"),
        ("a.png", noise()[:-300], "is damaged"),
        ("a.txt", b"\xff\xfe\xff", "is not UTF-8 text"),
        ("a.txt", b"x" * (2**20 + 1), "too many for a caption"),
        ("a.exe", b"x", "none of a picture, a sound or a caption"),
        (".hidden.png", png(), "is no name of a file"),
        ("../a.png", png(), "is no name of a file"),
        ("/etc/a.png", png(), "is no name of a file"),
        ("..\\a.png", png(), "is no name of a file"),
        ("a\n.png", png(), "is no name of a file"),
        ("x" * 300 + ".png", png(), "is longer than"),
        ("", png(), "the address says no name"),
    ],
)
def test_what_cannot_be_taken_is_refused_and_leaves_nothing(client, root, name, content, told):
    before = names(root / "data")
    (root / "data" / "a.png").rename(root / "data" / "z.png")  # the name is free
    (root / "data" / "a.txt").rename(root / "data" / "z.txt")
    answer = upload(client, content, name)
    assert answer.status_code == 400 and told in answer.json()["error"]
    assert len(names(root / "data")) == len(before)


def test_a_picture_that_would_fill_the_memory_is_refused_from_its_header(client, root):
    huge = bytearray(png((8, 8)))
    huge[16:24] = (40_000).to_bytes(4, "big") * 2  # width and height
    import zlib

    huge[29:33] = zlib.crc32(bytes(huge[12:29])).to_bytes(4, "big")
    assert "is too large" in upload(client, bytes(huge)).json()["error"]


def test_uploads_come_from_this_page_alone_and_are_bounded(client, root):
    before = names(root / "data")
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert upload(client, png(), **headers).status_code == 403
    for kind in ("text/plain", "multipart/form-data", "application/json", ""):
        assert upload(client, png(), **{"Content-Type": kind}).status_code == 415
    assert do(client, "data-save").status_code == 400
    assert upload(client, b"x", **{"Content-Length": str(MOST_UPLOAD + 1)}).status_code == 413

    def endless():
        for _ in range(MOST_UPLOAD // 2**22 + 2):
            yield b" " * 2**22

    assert upload(client, endless()).status_code == 413
    for folder in ("../", "/etc", "linked", "data/none"):
        os.path.lexists(root / "linked") or os.symlink("/etc", root / "linked")
        assert upload(client, png(), folder=folder).status_code == 400
    assert names(root / "data") == before


def test_a_browser_that_goes_away_amid_an_upload_leaves_nothing(root, queue):
    """As uvicorn tells it: a part of the body, then a disconnect."""
    import asyncio

    app = make_client(root, queue).app
    before = names(root / "data")
    messages = [
        {"type": "http.request", "body": png()[:30], "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        pass

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/octet-stream")]
    scope = {"type": "http", "method": "POST", "path": "/data/upload", "headers": headers, "server": ("127.0.0.1", 1)}
    asyncio.run(app({**scope, "query_string": b"folder=data&name=new.png", "root_path": ""}, receive, send))
    assert names(root / "data") == before


def test_a_full_disk_amid_an_upload_is_one_sentence(client, root, monkeypatch):
    def full(_path):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(uploads, "sync", full)
    before = names(root / "data")
    answer = upload(client, png())
    assert answer.status_code == 507 and "No space left on device. Make room" in answer.json()["error"]
    assert names(root / "data") == before


def test_a_check_says_of_each_picture_what_becomes_of_it(client, root, queue):
    (root / "data" / "b.png").write_bytes(b"")
    shutil.copy(root / "data" / "a.png", root / "data" / "twin.png")
    told = do(client, "data-check", folder="data", resolution="64").json()
    assert told["command"] == "fera data check data --json --data.allow_missing_captions=true --data.resolution=64"
    wait_for(lambda: queue.tick() or queue.job(told["job"]).state in ("done", "failed"), 60)
    shown = Editor(client).shown.text
    assert "Training would refuse: 1 of 4 pictures in data cannot be used" in shown
    assert "is empty (0 bytes)" in shown and "40 × 20 to" in shown and "smaller than its size" in shown
    assert "equal to twin.png" in shown
    page = Editor(client)
    assert "b.png" in page.look(only="bad").text and "a.png" not in page.shown.text
    assert "a.png" in page.look(only="small").text and "b.png" not in page.shown.text


def test_masks_are_painted_beside_the_folder_and_trained_with(client, root, queue):
    where = {"folder": "data", "name": "a.png"}
    assert client.get("/data/mask", params=where).status_code == 404
    sent = client.post("/data/mask", params=where, content=png((80, 40), 128), headers=BYTES)
    assert sent.json() == {"said": "saved as data-masks/a.png"}
    assert client.get("/data/mask", params=where).headers["content-type"] == "image/png"
    for content, told in (
        (png((40, 20), 0), "is black"),
        (png((40, 40), 255), "of another shape"),
        (b"x", "is no picture"),
    ):
        answer = client.post("/data/mask", params=where, content=content, headers=BYTES)
        assert answer.status_code == 400 and told in answer.json()["error"]
    with Image.open(root / "data-masks" / "a.png") as mask:
        assert mask.size == (80, 40) and mask.getextrema() == (128, 128)
    assert do(client, "data-white-masks", folder="data").json()["said"] == "made 2 white masks in data-masks"
    assert names(root / "data-masks") == ["a.png", "b.png", "c.png"]
    assert "--data.mask_path=data-masks" in do(client, "data-check", folder="data").json()["command"]
    outside = client.post("/data/mask", params={"folder": "data", "name": "../x.png"}, content=png(), headers=BYTES)
    assert outside.status_code == 400


def test_texts_and_names_are_escaped(client, root):
    nasty = '<img src=x onerror="alert(1)">'
    (root / "data" / "a.txt").write_text(nasty)
    Image.new("RGB", (8, 8)).save(root / "data" / "<b>x.png")
    text = client.get("/data?folder=data").text
    assert "<img src=x" not in text and "<b>x" not in text and "&lt;img src=x" in text


@pytest.mark.parametrize("path", ["../outside.png", "/etc/hostname", "linked/hostname", "link.png"])
def test_nothing_outside_is_shown(client, root, path):
    Image.new("RGB", (8, 8)).save(root.parent / "outside.png")
    os.symlink(root.parent / "outside.png", root / "link.png")
    os.symlink("/etc", root / "linked")
    for page in ("/thumb", "/data/view", "/picture"):
        assert client.get(page, params={"path": path}).status_code == 404
    assert client.get("/data", params={"folder": os.path.dirname(path) or ".."}).status_code == 404


def test_a_link_in_the_folder_to_somewhere_else_is_told(client, root):
    Image.new("RGB", (8, 8)).save(root.parent / "outside.png")
    os.symlink(root.parent / "outside.png", root / "data" / "link.png")
    shown = client.get("/data?folder=data").text
    assert "outside of the data folder" in shown


def test_a_folder_that_vanishes_is_told_and_edits_are_kept(client, root):
    page = Editor(client)
    page.do("edit", name="a.png", caption="kept")
    (root / "data").rename(root / "gone")
    assert "put it back, or choose another" in page.do("save")["error"]
    assert "put it back" in client.get("/data/rows?folder=data").text
    (root / "gone").rename(root / "data")
    assert page.do("save")["said"] == "saved 1 caption" and caption(root, "a") == "kept\n"


def test_thumbnails_are_made_once(client, root, monkeypatch):
    from fera.web import thumbs

    calls = []
    real = thumbs.load_image
    monkeypatch.setattr(thumbs, "load_image", lambda path: calls.append(path) or real(path))
    first = client.get("/thumb?path=data/a.png").content
    assert client.get("/thumb?path=data/a.png").content == first and len(calls) == 1
    Image.new("RGB", (40, 20), "red").save(root / "data" / "a.png")
    assert client.get("/thumb?path=data/a.png").content != first and len(calls) == 2


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
    assert "is outside of" in page.do("caption", model="/etc")["error"]
    page.do("edit", name="a.png", caption="x")
    assert "save or drop them first" in page.do("caption", model=str(hub))["error"]


def test_the_form_to_train_begins_with_the_folder(client):
    shown = Page(client.get("/train?data=data").text)
    assert next(one for one in shown.all("input") if one.get("name") == "data.train_data_dir")["value"] == "data"
