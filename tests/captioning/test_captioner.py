"""Captions by a local model: tiny ones with random weights, whose words mean nothing."""

import random

import pytest
from caption_cases import CASES
from PIL import Image

from fera.captioning.models import find_models, kind_of
from fera.cli.main import main
from fera.data.editing import read_folder


@pytest.fixture(scope="module", params=CASES)
def any_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    CASES[request.param](folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "models--me--describer" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    CASES["blip"](folder)
    return folder


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (20, 12), "red").save(folder / f"{name}.png")
    (folder / "b.txt").write_text("by hand")
    return folder


def run(data, model, *more):
    words = ["data", "caption", str(data), "--model", str(model), "--max-new-tokens", "5", "--device", "cpu"]
    return main([*words, *more])


def test_pictures_without_a_caption_get_one(data, model, capfd):
    assert run(data, model, "--prefix", "ink") == 0
    captions = {entry.name: entry.caption for entry in read_folder(data).entries}
    assert captions["b.png"] == "by hand"
    assert captions["a.png"] == captions["c.png"] and captions["a.png"].startswith("ink")
    assert "2 captions written" in capfd.readouterr().out
    assert run(data, model) == 0  # all have one
    assert "0 captions written" in capfd.readouterr().out
    assert run(data, model, "--overwrite") == 0
    assert (data / "b.txt").read_text() != "by hand"


def captions_of(data):
    return {entry.name: entry.caption for entry in read_folder(data).entries}


def test_every_kind_sees_the_picture_and_hears_the_question(data, any_model, capfd):
    for number in range(4):
        Image.frombytes("RGB", (20, 12), random.Random(number).randbytes(720)).save(data / f"{number}.png")
    assert run(data, any_model, "--overwrite") == 0
    captions = captions_of(data)
    assert captions["a.png"] == captions["b.png"] and len(set(captions.values())) > 1
    kind = kind_of(any_model)
    assert run(data, any_model, "--overwrite", "--prompt", "in the image .") == (2 if kind in ("blip", "git") else 0)
    if kind in ("blip", "git"):
        assert f"is a {kind}, which describes a picture unasked: leave --prompt out" in said(capfd)
    else:
        assert captions_of(data) != captions


def test_florence_is_asked_by_a_task(data, tmp_path, capfd):
    CASES["florence2"](tmp_path)
    assert run(data, tmp_path, "--overwrite", "--prompt", "<DETAILED_CAPTION>") == 0
    named = captions_of(data)
    assert run(data, tmp_path, "--overwrite") == 0
    assert captions_of(data) == named
    assert run(data, tmp_path, "--overwrite", "--prompt", "<CAPTION> of it") == 2
    assert "Task token <CAPTION> should be the only content" in said(capfd)
    assert captions_of(data) == named


def test_a_chat_model_without_its_template_is_refused(data, tmp_path, capfd):
    CASES["llava"](tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert run(data, tmp_path) == 2
    assert "has no chat template to be asked by" in said(capfd)


def said(capfd):
    return " ".join(capfd.readouterr().err.split())


def test_a_broken_picture_is_left_out_and_named(data, model, capfd):
    (data / "a.png").write_bytes(b"no picture")
    assert run(data, model) == 0
    assert "left out" in capfd.readouterr().err and not (data / "a.txt").exists()


def test_models_are_found_in_the_hubs_cache(model, monkeypatch, tmp_path):
    hub = model.parents[2]
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    other = hub / "models--me--drawer" / "snapshots" / "x"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "clip"}')
    (found,) = find_models()
    assert (found.name, found.kind, found.path) == ("me/describer", "blip", str(model))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert find_models() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": 3}', '{"model_type": "clip"}'])
def test_what_is_no_such_model_is_refused(data, tmp_path, text, capfd):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert kind_of(tmp_path) is None
    assert run(data, tmp_path) == 2
    assert "is no folder of a model that writes captions" in " ".join(capfd.readouterr().err.split())
