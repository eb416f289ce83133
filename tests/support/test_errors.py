"""Errors of programs are not called faults of what a user gave."""

import errno
import json
import shutil

import huggingface_hub
import pytest
import torch
from accelerate import Accelerator
from PIL import Image, ImageFile, ImageOps
from training_cases import run_config

from fera import FeraError
from fera.adapters.file import open_adapter
from fera.config import DataConfig
from fera.data.checking import check_images, find_examples
from fera.errors import reason_of
from fera.pipelines.base import load_base
from fera.training.folder.checkpoints import read_state
from fera.training.publishing import hub
from fera.training.telling.tracking import Trackers

PROGRAMS = [AttributeError("no attribute 'x'"), TypeError("unexpected keyword 'x'"), NameError("name 'x'")]


def raising(error: Exception):
    def call(*_args: object, **_settings: object):
        raise error

    return call


def check(folder, **settings):
    config = DataConfig(train_data_dir=folder, **settings)
    return check_images(find_examples(folder, config), skip_bad=True)


@pytest.mark.parametrize("error", PROGRAMS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("owner", "name"),
    [(Image, "open"), (ImageOps, "exif_transpose"), (ImageFile.ImageFile, "load"), (Image.Image, "convert")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_picture_is_damaged_by_an_error_of_a_program(image_folder, monkeypatch, owner, name, error):
    Image.new("L", (20, 16)).save(image_folder / "0.png")  # is converted
    monkeypatch.setattr(owner, name, raising(error))
    with pytest.raises(type(error), match="'x'"):
        check(image_folder)


def test_a_version_of_pillow_that_lacks_something(image_folder, monkeypatch):
    """As Pillow 10.0 does: its pictures are not damaged."""
    monkeypatch.delattr(Image.Image, "has_transparency_data")
    with pytest.raises(AttributeError, match="has_transparency_data"):
        check(image_folder)


def test_what_the_system_refuses_is_no_damage(image_folder, monkeypatch):
    load = ImageFile.ImageFile.load

    def refusing(image):
        if image.filename.endswith("1.png"):
            raise OSError(errno.EIO, "Input/output error")
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", refusing)
    good, bad = check(image_folder)
    assert len(good) == 3 and bad == [f"{image_folder / '1.png'} cannot be read (Input/output error)"]


def _dataset(tmp_path, monkeypatch, call):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", call)
    (tmp_path / "a.parquet").touch()
    find_examples(tmp_path, DataConfig(train_data_dir=tmp_path))


def _state(tmp_path, monkeypatch, call):
    monkeypatch.setattr(torch, "load", call)
    read_state(tmp_path)


def _adapter(tmp_path, monkeypatch, call):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", call)
    open_adapter("owner/name")


def _card(tmp_path, monkeypatch, call):
    monkeypatch.setattr(huggingface_hub, "ModelCard", call)
    hub._base_of("", tmp_path)


def _hub(tmp_path, monkeypatch, call):
    hub._reach(call, "what")


def _trackers(tmp_path, monkeypatch, call):
    accelerator = Accelerator(log_with="tensorboard", project_dir=tmp_path)
    monkeypatch.setattr(accelerator, "init_trackers", call)
    Trackers.start(accelerator, run_config(tmp_path, tmp_path, tmp_path / "run"), resumed=False, logged=-1)


@pytest.mark.parametrize("use", [_dataset, _state, _adapter, _card, _hub, _trackers], ids=lambda use: use.__name__)
@pytest.mark.parametrize("error", [*PROGRAMS, RuntimeError("odd")], ids=lambda error: type(error).__name__)
def test_other_libraries_errors(tmp_path, monkeypatch, use, error):
    expected = FeraError if isinstance(error, RuntimeError) else type(error)
    with pytest.raises(expected) as caught:
        use(tmp_path, monkeypatch, raising(error))
    assert "odd" in str(caught.value) or caught.value is error


@pytest.mark.parametrize(
    ("index", "message"),
    [({"_class_name": "Foo"}, "AttributeError: module diffusers has no attribute Foo"), ([1], "no JSON object")],
)
def test_an_odd_base_is_the_users(tiny_sd_dir, tmp_path, index, message):
    shutil.copytree(tiny_sd_dir, tmp_path / "base")
    path = tmp_path / "base" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index if isinstance(index, dict) else index))
    with pytest.raises(FeraError, match=message):
        load_base(str(tmp_path / "base"))


def test_a_reason_names_the_kind_where_it_says_more():
    assert reason_of(ValueError("a\nb")) == "a" and reason_of(KeyError()) == "KeyError"
    assert reason_of(TypeError("not callable")) == "TypeError: not callable"
