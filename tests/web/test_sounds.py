"""Sounds on the page: played in parts, listed with their spectrograms, under the samples of a run and in drawings."""

import json
import os

import pytest
from PIL import Image
from sound_cases import sound_folder, write_sound
from web_cases import ADDRESS, do, wait_for, write_light_run


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    write_light_run(root / "runs" / "a")
    sound_folder(root / "bells")
    return root


def test_sounds_are_handed_out_in_parts(client, root):
    part = client.get("/sound?path=bells/a.wav", headers={"Range": "bytes=0-3"})
    assert part.status_code == 206 and part.content == b"RIFF" and part.headers["content-type"] == "audio/wav"
    os.symlink("/etc/hostname", root / "b.wav")
    for path in ("bells/a.txt", "b.wav", "none.wav"):
        assert client.get("/sound", params={"path": path}).status_code == 404


def test_a_folder_of_sounds_is_listed_checked_and_edited(client, root, queue):
    shown = client.get("/data?folder=bells").text
    assert "<b>4</b> sounds" in shown and shown.count("<audio controls") == 4
    assert client.get("/thumb?path=bells/c.mp3").headers["content-type"] == "image/webp"
    assert "bells" in client.get("/data").text
    version = int(shown.split('data-version="')[1].split('"')[0])
    edited = do(client, "data-edit", folder="bells", version=version, name="a.wav", caption="a low tone")
    assert edited.status_code == 200
    saved = do(client, "data-save", folder="bells", version=edited.json()["version"])
    assert saved.status_code == 200 and (root / "bells" / "a.txt").read_text() == "a low tone\n"
    assert "--data.seconds=2" in do(client, "data-check", folder="bells", seconds="2").json()["command"]
    assert "--data.seconds=10" in do(client, "data-check", folder="bells").json()["command"]


def test_what_is_dropped_must_be_a_sound(client, root):
    send = {"Content-Type": "application/octet-stream", "Origin": ADDRESS}
    content = write_sound(root / "e.flac").read_bytes()
    for name, body, status in (("e.flac", content, 200), ("f.flac", b"no sound", 400)):
        answer = client.post("/data/upload", params={"folder": "bells", "name": name}, content=body, headers=send)
        assert answer.status_code == status
    assert (root / "bells" / "e.flac").is_file() and not (root / "bells" / "f.flac").exists()


def test_samples_of_a_run_are_heard(client, root):
    samples = root / "runs" / "a" / "samples"
    samples.mkdir()
    Image.new("RGB", (8, 8)).save(samples / "step-000010.png")
    write_sound(samples / "step-000010-000.wav")
    shown = client.get("/run/samples?name=runs/a").text
    assert '<audio controls preload="none" src="/sound?path=runs/a/samples/step-000010-000.wav' in shown


def test_a_drawing_names_its_sounds(client, root):
    form = {"prompts": "a bell", "base": "runs/a", "seconds": "3"}
    drawn = do(client, "draw", **form)
    assert drawn.status_code == 200 and "--seconds=3" in drawn.json()["command"]
    folder = root / drawn.json()["name"]
    Image.new("RGB", (8, 8)).save(folder / "000-a-bell.png")
    write_sound(folder / "000-a-bell.wav")
    told = wait_for(lambda: client.get("/draw/live", params={"name": drawn.json()["name"]}).json()["pictures"])
    (row,) = told[0]["rows"].values()
    assert row["sound"].endswith("/000-a-bell.wav") and json.dumps(told)
