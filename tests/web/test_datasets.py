"""The page about data: folders, what a check says of each picture, masks, thumbnails."""

import os
import shutil

import pytest
from PIL import Image
from report_cases import Page
from web_cases import UPLOAD, Editor, do, names, png, wait_for

from fera.web import thumbs


def test_folders_are_offered_and_one_is_shown(client):
    assert "data" in [one["value"] for one in Page(client.get("/data").text).all("option")]
    shown = Page(client.get("/data?folder=data").text)
    assert "3 pictures" in shown.text and "a picture b" in shown.text
    assert "No model that describes pictures" in shown.text


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
    sent = client.post("/data/mask", params=where, content=png((80, 40), 128), headers=UPLOAD)
    assert sent.json() == {"said": "saved as data-masks/a.png"}
    assert client.get("/data/mask", params=where).headers["content-type"] == "image/png"
    for content, told in (
        (png((40, 20), 0), "is black"),
        (png((40, 40), 255), "of another shape"),
        (b"x", "is no picture"),
    ):
        answer = client.post("/data/mask", params=where, content=content, headers=UPLOAD)
        assert answer.status_code == 400 and told in answer.json()["error"]
    with Image.open(root / "data-masks" / "a.png") as mask:
        assert mask.size == (80, 40) and mask.getextrema() == (128, 128)
    assert do(client, "data-white-masks", folder="data").json()["said"] == "made 2 white masks in data-masks"
    assert names(root / "data-masks") == ["a.png", "b.png", "c.png"]
    assert "--data.mask_path=data-masks" in do(client, "data-check", folder="data").json()["command"]
    outside = client.post("/data/mask", params={"folder": "data", "name": "../x.png"}, content=png(), headers=UPLOAD)
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


def test_thumbnails_are_made_once(client, root, monkeypatch):
    calls = []
    real = thumbs.load_image
    monkeypatch.setattr(thumbs, "load_image", lambda path: calls.append(path) or real(path))
    first = client.get("/thumb?path=data/a.png").content
    assert client.get("/thumb?path=data/a.png").content == first and len(calls) == 1
    Image.new("RGB", (40, 20), "red").save(root / "data" / "a.png")
    assert client.get("/thumb?path=data/a.png").content != first and len(calls) == 2


def test_the_form_to_train_begins_with_the_folder(client):
    shown = Page(client.get("/train?data=data").text)
    assert next(one for one in shown.all("input") if one.get("name") == "data.train_data_dir")["value"] == "data"
