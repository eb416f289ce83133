"""A run loads each part of its base when it needs it, and only then."""

import json
import re

import pytest
import torch
from cache_cases import entries
from safetensors.torch import load_file, save_file
from training_cases import run_config

from fera.cli.main import main
from fera.data.cache import fingerprints
from fera.pipelines.empty_parts import is_empty
from fera.pipelines.waiting import Base
from fera.support.progress import SILENT
from fera.training import to_toml, train
from fera.training.start import encoding, opening
from fera.training.start.prepare import prepare

CPU = torch.device("cpu")
PROMPTS = {"prompts": ["a red rocket", "a blue house"], "num_inference_steps": 2, "steps": 6}


@pytest.fixture
def loaded(monkeypatch):
    """Names of the parts that were loaded, in order; files need not have been left alone."""
    names = []

    def load(self, given, dtypes=None, *, laid_out, real=Base._load):
        pipe = real(self, given, dtypes, laid_out=laid_out)
        if hasattr(self, "pipe"):
            names.append(",".join(sorted(name for name in self.waiting if name not in given)))
        return pipe

    monkeypatch.setattr(Base, "_load", load)
    monkeypatch.setattr(fingerprints.Fingerprints.__init__, "__defaults__", (0.0,))
    return names


def test_encoders_come_one_after_the_other_and_only_for_what_is_missing(tiny_sd_dir, image_folder, tmp_path, loaded):
    validation = {"validation_fraction": 0.25}
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "first", data=validation))
    assert loaded == ["text_encoder", "vae", "unet"]
    loaded.clear()
    summary = train(run_config(tiny_sd_dir, image_folder, tmp_path / "second", data=validation))
    assert loaded == ["unet"] and summary.steps == 6
    loaded.clear()
    (image_folder / "1.txt").write_text("something new")
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "third", data=validation))
    assert loaded == ["text_encoder", "unet"]
    first, second = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("first", "second")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_another_encoder_in_the_same_files_is_seen(tiny_sd_dir, image_folder, tmp_path, loaded):
    import shutil

    base = shutil.copytree(tiny_sd_dir, tmp_path / "base")
    train(run_config(base, image_folder, tmp_path / "first"))
    loaded.clear()
    path = base / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    save_file({name: value * 2 for name, value in weights.items()}, path, {"format": "pt"})
    train(run_config(base, image_folder, tmp_path / "second"))
    assert loaded == ["text_encoder", "unet"]
    one, other = (len(entries(tmp_path / "cache", kind)) for kind in ("latent", "text"))
    assert (one, other) == (4, 10)  # four captions and the empty one, by each encoder


@pytest.mark.parametrize("base", ["tiny_sd_dir", "tiny_sd3_dir"])
def test_previews_need_no_text_encoder(request, image_folder, tmp_path, loaded, base):
    folder = request.getfixturevalue(base)
    config = run_config(folder, image_folder, tmp_path / "first", validation=PROMPTS)
    assert train(config).steps == 6
    # The autoencoder again, in the precision of the pictures.
    assert len(loaded) == 4 and loaded[0].startswith("text_encoder") and loaded[1] == loaded[3] == "vae"
    loaded.clear()
    again = run_config(folder, image_folder, tmp_path / "second", validation=PROMPTS)
    setup = prepare(again, CPU, SILENT)
    assert not any("text_encoder" in names for names in loaded)
    assert is_empty(setup.pipe.text_encoder) and not is_empty(setup.pipe.vae)
    train(again)
    assert not any("text_encoder" in names for names in loaded)
    first, second = ((tmp_path / name / "samples").glob("*.png") for name in ("first", "second"))
    pictures = [{path.name: path.read_bytes() for path in paths} for paths in (first, second)]
    assert len(pictures[0]) >= 2 and pictures[0] == pictures[1]


def test_a_prompt_that_is_cached_no_more_is_encoded_again(tiny_sd_dir, image_folder, tmp_path, loaded, monkeypatch):
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", validation=PROMPTS)
    setup = prepare(config, CPU, SILENT)
    loaded.clear()
    kept = list((tmp_path / "cache").glob("prompt-*"))
    assert len(kept) == 1  # both prompts are drawn together
    kept[0].unlink()
    prompts = {"prompt": PROMPTS["prompts"], "device": CPU, "num_images_per_prompt": 1}
    answers = [setup.pipe.encode_prompt(**prompts, do_classifier_free_guidance=guided) for guided in (True, False)]
    assert loaded == ["text_encoder"] * 2 and is_empty(setup.pipe.text_encoder)
    whole = Base(str(tiny_sd_dir), {"default": torch.float32})
    whole.bring()
    for answer, guided in zip(answers, (True, False), strict=True):
        expected = whole.pipe.encode_prompt(**prompts, do_classifier_free_guidance=guided)
        assert torch.equal(answer[0], expected[0])
        assert (answer[1] is None) == (not guided) and (not guided or torch.equal(answer[1], expected[1]))


@pytest.mark.parametrize(
    ("adapter", "settings", "words"),
    [
        ({"target_modules": ["nowhere"]}, {}, "nowhere"),
        ({}, {"offload": "disk", "mixed_precision": "bf16"}, "as it is used here, in bfloat16 (there it is float32)"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_loaded(
    tiny_sd_dir, image_folder, tmp_path, loaded, capsys, adapter, settings, words
):
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", adapter=adapter, train=settings)
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    assert words in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert loaded == []


def test_class_pictures_are_drawn_with_the_whole_base(tiny_sd_dir, image_folder, tmp_path, loaded):
    data = {"class_data_dir": tmp_path / "class", "class_prompt": "a thing", "num_class_images": 2, "resolution": 16}
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", data=data, validation={"num_inference_steps": 1})
    train(config)
    assert loaded[0] == "text_encoder,unet,vae" and loaded[1:] == ["text_encoder", "vae", "unet"]
    loaded.clear()
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "again", data=data))
    assert loaded == ["unet"]


def test_a_pipeline_that_asks_its_text_encoders_itself_keeps_them(tiny_sd_dir, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "keep_prompts", lambda *_: False)
    config = run_config(tiny_sd_dir, image_folder, tmp_path / "run", validation=PROMPTS)
    assert not is_empty(prepare(config, CPU, SILENT).pipe.text_encoder)
    assert train(config).steps == 6
    record = json.loads((tmp_path / "run" / "samples" / "step-000006.json").read_text())
    assert [image["prompt"] for image in record["images"]] == PROMPTS["prompts"]


def test_text_encoders_larger_than_the_device_encode_on_the_cpu(tiny_sd_dir, image_folder, tmp_path, monkeypatch):
    places = []
    real = encoding.Encoder
    monkeypatch.setattr(encoding, "Encoder", lambda **given: places.append(given["text_device"]) or real(**given))
    sources = opening.open_sources(run_config(tiny_sd_dir, image_folder, tmp_path / "run"), SILENT)
    size = sum(weight.nbytes for weight in sources.pipe.text_encoder.parameters())
    for total, expected in ((None, "meta"), (size * 2, "meta"), (size, "cpu")):
        monkeypatch.setattr(encoding, "device_memory", lambda device, total=total: total)
        assert encoding._text_device(sources, torch.device("meta"), SILENT).type == expected
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "run"))
    assert [place.type for place in places] == ["cpu"]
