"""Which files are read as pictures, which are named instead, and what a plugin is needed for."""

import io
import json
import sys

import numpy as np
import pytest
from listeners import Printed, train
from PIL import Image
from training_cases import run_config

from fera import FeraError
from fera.cli.main import main
from fera.config import DataConfig
from fera.data.checking import check_images
from fera.data.images import load_image
from fera.data.picture_formats import FORMATS, HEIC, IMAGE_SUFFIXES, JPEG_XL, UNREAD_SUFFIXES, jxl_size, kind_of
from fera.data.sources import scan, scan_training
from fera.evaluation.side_by_side import Request, evaluate_side_by_side

# A JPEG XL codestream states its size right after the signature: this one 256 x 256 in the short form, the other as
# many pixels as there can be. What follows is of no use, for it must not be decoded.
JXL_HEAD = b"\xff\n" + (1 | 31 << 1 | 1 << 6).to_bytes(14, "little")
JXL_BOMB = b"\xff\n" + (3 << 1 | (2**30 - 1) << 3 | 1 << 33).to_bytes(14, "little")
HEIC_HEAD = b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + b"\0" * 40


def picture(path, format=None, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), color).save(path, format)
    path.with_suffix(".txt").write_text("a caption")


def config(folder, **settings):
    return DataConfig(train_data_dir=folder, **settings)


def test_endings_are_those_that_pillow_knows():
    Image.init()
    known = {suffix for suffix, format_ in Image.EXTENSION.items() if format_ in (*FORMATS, "MPO")}
    plugins = {".heic", ".heif", ".hif", ".heics", ".heifs", ".jxl"}
    assert known | plugins == IMAGE_SUFFIXES
    assert not UNREAD_SUFFIXES & IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".jpe", ".jfif", ".JFIF", ".apng", ".mpo"])
def test_jpeg_by_any_ending_in_every_layout(tmp_path, suffix):
    format_ = "PNG" if suffix == ".apng" else "JPEG"
    for name in ("flat/a", "repeats/2_dog/a", "rows/a"):
        picture((tmp_path / name).with_suffix(suffix), format_, "blue")
    (tmp_path / "rows" / "metadata.jsonl").write_text(json.dumps({"file_name": f"a{suffix}", "text": "a caption"}))
    (tmp_path / "rows" / "a.txt").unlink()
    for layout in ("flat", "repeats", "rows"):
        found = scan(tmp_path / layout, config(tmp_path))
        (example,) = check_images(found.examples, skip_bad=False)[0]
        assert example.caption == "a caption" and example.size == (20, 16) and found.notes == []
        assert load_image(example.image).getpixel((3, 3))[2] > 250


def test_what_is_not_read_is_named_in_every_layout(tmp_path):
    for folder in ("flat", "repeats/2_dog", "rows"):
        picture(tmp_path / folder / "a.png")
        picture(tmp_path / folder / "b.tga")
        picture(tmp_path / folder / "deep" / "c.PCX")
    (tmp_path / "rows" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n')
    for layout in ("flat", "repeats", "rows"):
        found = scan(tmp_path / layout, config(tmp_path))
        (note,) = [note for note in found.notes if ".tga" in note]
        inner = "2_dog/" if layout == "repeats" else ""
        assert note == (
            "2 files are left alone, for pictures of that format are not read (.pcx, .tga): "
            f"{inner}b.tga, {inner}deep/c.PCX; convert it, to PNG for one"
        )
        assert len(found.examples) == 1
    (tmp_path / "flat" / "a.png").unlink()
    with pytest.raises(FeraError, match=r"no pictures in .*found .*\(\.pcx, \.tga\): b\.tga"):
        scan(tmp_path / "flat", config(tmp_path))


def test_what_is_not_read_beside_parquet_and_in_a_local_dataset(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "set"
    picture(folder / "b.tga")
    columns = {"image": [Image.new("RGB", (20, 16))], "text": ["x"]}
    datasets.Dataset.from_dict(columns).to_parquet(folder / "data.parquet")
    for found in (scan(folder, config(folder)), scan_training(DataConfig(dataset_name=str(folder)))):
        assert len(found.examples) == 1 and "b.tga" in " ".join(found.notes)


def test_validation_and_class_pictures_too(tiny_sd_dir, image_folder, tmp_path, capsys):
    for folder in ("held", "class"):
        picture(tmp_path / folder / "a.png")
        picture(tmp_path / folder / f"{folder}.tga")
    data = {"validation_data_dir": tmp_path / "held", "class_data_dir": tmp_path / "class"}
    flags = [word for name, path in data.items() for word in (f"--data.{name}", str(path))]
    assert main(["data", "check", str(image_folder), *flags]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "(.tga): held.tga" in shown and "(.tga): class.tga" in shown
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "run", data=data, train={"steps": 1}))
    said = capsys.readouterr().err
    assert "held: 1 file is left alone" in said and "class: 1 file is left alone" in said


def test_evaluation_names_them(tiny_sd_dir, image_folder, tmp_path, monkeypatch, capsys):
    picture(image_folder / "z.tga")

    def stop(_base):
        raise FeraError("enough")

    monkeypatch.setattr("fera.evaluation.side_by_side.load_base", stop)
    with pytest.raises(FeraError, match="enough"):
        request = Request(str(tiny_sd_dir), image_folder, tmp_path / "out")
        evaluate_side_by_side(request, Printed())
    assert "(.tga): z.tga" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "module", "kind"),
    [(JXL_HEAD, "pillow_jxl", "JPEG XL"), (HEIC_HEAD, "pillow_heif", "HEIC")],
    ids=["jxl", "heic"],
)
@pytest.mark.parametrize("name", ["own", "a.png"])
def test_without_the_plugin_it_is_said_what_to_install(image_folder, monkeypatch, head, module, kind, name):
    """By what a file holds: a row of a dataset has no ending."""
    monkeypatch.setitem(sys.modules, module, None)
    name = {"JPEG XL": "a.jxl", "HEIC": "a.heic"}[kind] if name == "own" else name
    (image_folder / name).write_bytes(head)
    (image_folder / "a.txt").write_text("x")
    found = scan(image_folder, config(image_folder))
    assert len(found.examples) == 5
    with pytest.raises(
        FeraError, match=rf"a\..* is a {kind} picture, which needs pillow-.*pip install 'fera\[pictures\]'"
    ):
        check_images(found.examples, skip_bad=False)
    good, bad = check_images(found.examples, skip_bad=True)
    assert len(good) == 4 and "fera[pictures]" in bad[0]


def test_kinds_by_their_first_bytes():
    assert kind_of(JXL_HEAD) is kind_of(b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 52) is JPEG_XL
    assert kind_of(HEIC_HEAD) is kind_of(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 40) is HEIC
    assert kind_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + b"\0" * 40) is None
    for format_ in FORMATS:
        content = io.BytesIO()
        Image.new("RGB", (20, 16)).save(content, format_)
        assert kind_of(content.getvalue()[:64]) is None
    assert kind_of(b"") is None


def test_a_jpeg_xl_bomb_is_refused_undecoded(image_folder, monkeypatch):
    assert jxl_size(JXL_HEAD) == (256, 256) and jxl_size(JXL_BOMB) == (2**30, 2**30)
    container = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl "
    whole = container + (8 + 16).to_bytes(4, "big") + b"jxlc" + JXL_BOMB
    parts = container + (12 + 16).to_bytes(4, "big") + b"jxlp\0\0\0\0" + JXL_BOMB
    for content in (JXL_BOMB, whole, parts):
        assert jxl_size(content) == (2**30, 2**30)
        monkeypatch.setattr("fera.data.images.formats_of", lambda kind: ("JXL",))
        (image_folder / "0.png").write_bytes(content)
        with pytest.raises(FeraError, match=r"0\.png is too large \(1073741824 x 1073741824 pixels\)"):
            check_images(scan(image_folder, config(image_folder)).examples, skip_bad=False)
    for content in (b"", container, container + b"\0\0\0\0jxlx", container + b"\0\0\0\x01abcd" + b"\0" * 8):
        assert jxl_size(content) is None


@pytest.mark.parametrize(
    "size", [(8, 8), (256, 128), (20, 16), (300, 400), (400, 300), (37, 5000), (160, 90), (600, 500)]
)
@pytest.mark.parametrize("container", [False, True])
def test_the_stated_size_is_the_size(size, container):
    pytest.importorskip("pillow_jxl")
    content = io.BytesIO()
    Image.new("RGB", size).save(content, "JXL", use_container=container)
    assert jxl_size(content.getvalue()) == size


@pytest.mark.parametrize(("module", "name"), [("pillow_jxl", "a.jxl"), ("pillow_heif", "a.heic")])
def test_a_picture_of_a_plugin_is_trained_on_as_its_png(tmp_path, module, name):
    plugin = pytest.importorskip(module)
    if module == "pillow_heif":
        plugin.register_heif_opener()
    ramp = np.linspace(40, 215, 64).round().astype(np.uint8)
    image = Image.fromarray(
        np.stack([np.tile(ramp, (48, 1)), np.full((48, 64), 90, np.uint8), np.tile(ramp[::-1], (48, 1))], -1)
    )
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / name, quality=95)
    (tmp_path / "set" / "a.txt").write_text("x")
    (example,) = check_images(scan(tmp_path / "set", config(tmp_path)).examples, skip_bad=False)[0]
    assert example.size == (64, 48)
    difference = np.asarray(load_image(example.image), dtype=float) - np.asarray(image, dtype=float)
    assert np.abs(difference).mean() < 2
    clear = image.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "set" / name)
    assert load_image(tmp_path / "set" / name).getpixel((30, 20)) == (255, 255, 255)
    cut = (tmp_path / "set" / name).read_bytes()
    (tmp_path / "set" / name).write_bytes(cut[: len(cut) // 2])
    with pytest.raises(FeraError, match="a\\..* is (damaged|no picture)"):
        check_images([example], skip_bad=False)
