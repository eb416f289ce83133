"""Files that are dropped on the page: taken whole and looked at, or refused in a sentence."""

import asyncio
import io
import os
import zlib

import pytest
from PIL import Image
from web_cases import UPLOAD, Editor, do, make_client, names, png

from fera.web import uploads
from fera.web.guard import MOST_UPLOAD


def noise():
    held = io.BytesIO()
    Image.effect_noise((32, 32), 90).save(held, "PNG")
    return held.getvalue()


def upload(client, content, name="new.png", folder="data", **headers):
    return client.post(
        "/data/upload", params={"folder": folder, "name": name}, content=content, headers={**UPLOAD, **headers}
    )


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


def test_a_disk_without_links_takes_them_too(client, root, monkeypatch):
    def none(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    content = png((8, 8))
    assert upload(client, content).json() == {"said": "new.png is in"}
    assert (root / "data" / "new.png").read_bytes() == content
    assert "has another new.png, which stays" in upload(client, png((9, 9))).json()["error"]
    assert (root / "data" / "new.png").read_bytes() == content

    def full(*_):
        raise OSError(28, "No space left on device", "x")

    monkeypatch.setattr(os, "replace", full)
    assert upload(client, content, "b2.png").status_code == 507
    assert "b2.png" not in names(root / "data") and len(names(root / "data")) == 7


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
