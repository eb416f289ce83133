"""Captions by a local model: a tiny BLIP with random weights, whose words mean nothing."""

import pytest
from PIL import Image
from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

from fera.captioning.models import find_models, kind_of
from fera.cli.main import main
from fera.data.editing import read_folder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"word{number}" for number in range(20))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "models--me--describer" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    marks = {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = {**small, **marks, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 32}
    config = BlipConfig(text_config=text, vision_config={**small, "image_size": 16, "patch_size": 8}, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    image = BlipImageProcessor(size={"height": 16, "width": 16})
    BlipProcessor(image, tokenizer).save_pretrained(folder)
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
