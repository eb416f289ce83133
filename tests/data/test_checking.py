import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fera import FeraError
from fera.config import DataConfig
from fera.data.checking import check_images, crop_offset, find_examples, hold_out
from fera.data.images import load_image
from fera.data.tensors import to_tensor


def data(folder: Path, **settings: object) -> DataConfig:
    return DataConfig(train_data_dir=folder, **settings)


def find(folder: Path, **settings: object):
    return find_examples(folder, data(folder, **settings))


def test_flat_folder_in_order_of_names(image_folder):
    (image_folder / "3.txt").rename(image_folder / "3.caption")
    examples = find(image_folder)
    assert [example.image.name for example in examples] == ["0.png", "1.png", "2.png", "3.png"]
    assert examples[0].caption == "a red rocket"
    assert examples[3].caption == "a yellow cat"


@pytest.mark.parametrize(("choice", "caption"), [("join", "a cat on a mat"), ("first", "a cat")])
def test_captions_of_several_lines(image_folder, choice, caption):
    (image_folder / "0.txt").write_text("\ufeffa cat\n\n  on a mat \n", encoding="utf-8")
    assert find(image_folder, caption_lines=choice)[0].caption == caption


def test_imagefolder_jsonl(image_folder):
    (image_folder / "sub").mkdir()
    (image_folder / "0.png").rename(image_folder / "sub" / "0.png")
    rows = [{"file_name": f"{i}.png", "text": f"caption {i}"} for i in (2, 1, 3)]
    rows.append({"file_name": "sub/0.png", "text": "caption 0"})
    (image_folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert [example.caption for example in find(image_folder)] == [f"caption {i}" for i in (2, 1, 3, 0)]


def test_imagefolder_csv_with_other_columns(image_folder):
    lines = ["path,caption", '0.png,"red, and a rocket"', "1.png,tree", "2.png,house", "3.png,cat"]
    (image_folder / "metadata.csv").write_text("\n".join(lines))
    examples = find(image_folder, image_column="path", caption_column="caption")
    assert examples[0].caption == "red, and a rocket"
    with pytest.raises(FeraError, match="no 'file_name'; it has: path, caption"):
        find(image_folder)
    with pytest.raises(FeraError, match="no 'text'; it has: path, caption"):
        find(image_folder, image_column="path")


# What str.splitlines takes for the end of a line, and csv and text editors do not.
SEPARATORS = {"LS": "\u2028", "PS": "\u2029", "NEL": "\x85", "FF": "\f", "VT": "\v", "FS": "\x1c", "RS": "\x1e"}


@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS)
@pytest.mark.parametrize("lines", ["join", "first"])
def test_separators_in_a_caption_do_not_tear_it(image_folder, separator, lines):
    captions = [f"a red{separator}rocket {number}.png" for number in range(4)]
    for layout in ("txt", "jsonl", "csv"):
        if layout == "csv":
            (image_folder / "metadata.jsonl").unlink()
            with (image_folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([["file_name", "text"], *([f"{i}.png", c] for i, c in enumerate(captions))])
        elif layout == "jsonl":
            named = [{"file_name": f"{i}.png", "text": c} for i, c in enumerate(captions)]
            rows = [json.dumps(row, ensure_ascii=False) for row in named]
            (image_folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
        else:
            for number, caption in enumerate(captions):
                (image_folder / f"{number}.txt").write_text(caption, encoding="utf-8")
        examples = find(image_folder, caption_lines=lines)
        assert [(e.name, e.caption) for e in examples] == [
            (f"{number}.png", f"a red rocket {number}.png") for number in range(4)
        ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_captions_of_several_lines_in_csv(image_folder, end):
    with (image_folder / "metadata.csv").open("w", newline="") as file:
        file.write(end.join(["file_name,text", f'0.png,"a cat{end}{end}on a ""mat"""', "1.png,x", ""]))
    settings = {"allow_missing_captions": True}
    assert [e.caption for e in find(image_folder, **settings)] == ['a cat on a "mat"', "x", "", ""]
    assert find(image_folder, caption_lines="first", **settings)[0].caption == "a cat"


def test_picture_without_a_row_is_not_dropped_in_silence(image_folder):
    (image_folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n')
    with pytest.raises(FeraError, match="3 of 4 pictures"):
        find(image_folder)
    assert len(find(image_folder, allow_missing_captions=True)) == 4


@pytest.mark.parametrize("line", ["{not json", "[1]", '{"file_name": "0.png", "text": 3}'])
def test_bad_metadata_row_is_named(image_folder, line):
    (image_folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n' + line)
    with pytest.raises(FeraError, match=r"metadata\.jsonl, line 2,"):
        find(image_folder)


def test_missing_captions(image_folder):
    (image_folder / "1.txt").unlink()
    (image_folder / "2.txt").write_text("  \n")
    with pytest.raises(FeraError, match=r"2 of 4 pictures .* 1\.png, 2\.png"):
        find(image_folder)
    assert [example.caption == "" for example in find(image_folder, allow_missing_captions=True)][1:3] == [True] * 2


def test_empty_folder_lists_what_was_found(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(FeraError, match="no pictures") as caught:
        find(tmp_path)
    assert "1 x folder" in str(caught.value) and "1 x .md" in str(caught.value)
    with pytest.raises(FeraError, match="does not exist"):
        find(tmp_path / "absent")
    with pytest.raises(FeraError, match="is a file"):
        find(tmp_path / "notes.md")


def damage(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "whole.png")
    for suffix in ("png", "jpg"):
        Image.fromarray(noise).save(folder / f"cut.{suffix}")
        content = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    for path in folder.iterdir():
        path.with_suffix(".txt").write_text("x")


def test_damaged_pictures_are_all_named(tmp_path):
    damage(tmp_path)
    examples = find(tmp_path)
    with pytest.raises(
        FeraError, match="4 of 5 pictures cannot be used.*a training run leaves them out with data.skip_bad"
    ) as caught:
        check_images(examples, skip_bad=False)
    message = str(caught.value)
    assert "empty.png is empty (0 bytes)" in message
    assert "text.png is no picture" in message
    assert "cut.png is damaged" in message and "cut.jpg is damaged" in message
    good, bad = check_images(examples, skip_bad=True)
    assert [example.image.name for example in good] == ["whole.png"] and len(bad) == 4
    assert good[0].size == (64, 64) and len(good[0].digest) == 64


def test_nothing_left_after_skipping(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(FeraError, match="none of 1 pictures"):
        check_images(find(tmp_path), skip_bad=True)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_huge_picture_is_refused_by_name(image_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(FeraError, match=r"0\.png is too large \(20 x 16 pixels\)"):
        check_images(find(image_folder), skip_bad=False)


def test_picture_in_metadata_that_does_not_exist(image_folder):
    (image_folder / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "x"}\n')
    with pytest.raises(FeraError, match=r"gone\.png does not exist"):
        check_images(find(image_folder, allow_missing_captions=True), skip_bad=False)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 10), "red").save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (10, 30)


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "p.png", transparency=0)
    for name in ("rgba.png", "p.png"):
        image = load_image(tmp_path / name)
        assert image.mode == "RGB" and image.getpixel((1, 1)) == (255, 255, 255)


def test_sixteen_bit_pictures_keep_their_range(tmp_path):
    Image.fromarray(np.full((4, 4), 65535 // 2, dtype=np.uint16)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (127, 127, 127)


def test_to_tensor_range_and_crop():
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (16, 0, 32, 16))
    left, right = to_tensor(image, (16, 16), 0.0), to_tensor(image, (16, 16), 1.0)
    assert left.shape == (3, 16, 16) and left.dtype == torch.float32
    assert (left == -1).all() and (right == 1).all()
    centre = to_tensor(image, (16, 16))
    assert (centre[..., :8] == -1).all() and (centre[..., 8:] == 1).all()


@pytest.mark.parametrize("size", [(16, 16), (100, 37), (7, 90), (1, 1)])
def test_to_tensor_any_size(size):
    assert to_tensor(Image.new("RGB", size, "red"), (24, 24)).shape == (3, 24, 24)


def test_crops_off_centre_are_drawn_once(image_folder):
    examples, _ = check_images(find(image_folder), skip_bad=False)
    offsets = [crop_offset(example, center_crop=False, seed=0) for example in examples]
    assert offsets == [crop_offset(example, center_crop=False, seed=0) for example in examples]
    assert len(set(offsets)) == 4 and all(0 <= offset <= 1 for offset in offsets)
    assert crop_offset(examples[0], center_crop=True, seed=0) == 0.5


def test_hold_out_is_a_stable_split(image_folder):
    examples = find(image_folder)
    train, held = hold_out(examples, 0.3)
    assert len(held) == 1 and sorted(train + held, key=lambda e: e.image) == examples
    assert hold_out(list(reversed(examples)), 0.3)[1] == held
    assert hold_out(examples, 0.0) == (examples, [])
    assert len(hold_out(examples, 0.99)[0]) == 1
    with pytest.raises(FeraError, match="two pictures"):
        hold_out(examples[:1], 0.5)


def test_torchvision_is_not_needed():
    import subprocess
    import sys

    code = "import sys, fera.data.checking, fera.data.cache.encoder; assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("size", [(100_000, 10), (10, 40_000), (10_000, 9_000)])
def test_pictures_beyond_all_use_are_refused_unread(image_folder, size):
    Image.new("1", size).save(image_folder / "0.png")
    with pytest.raises(FeraError, match=rf"0\.png is too large \({size[0]} x {size[1]} pixels\)"):
        check_images(find(image_folder), skip_bad=False)


def test_a_bomb_is_refused(image_folder):
    import struct
    import zlib

    content = (image_folder / "0.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 2**31 - 1, 2**31 - 1) + content[24:29]
    (image_folder / "0.png").write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    with pytest.raises(FeraError, match=r"0\.png is too large"):
        check_images(find(image_folder), skip_bad=False)


def test_a_long_thin_picture_is_not_blown_up(tmp_path):
    Image.new("RGB", (32_000, 2), "red").save(tmp_path / "a.png")
    tensor = to_tensor(load_image(tmp_path / "a.png"), (64, 64), 0.3)  # scaled before it is cropped: a million wide
    assert tensor.shape == (3, 64, 64) and (tensor[0] == 1).all() and (tensor[1:] == -1).all()


def test_the_content_decides_what_reads_a_picture(image_folder):
    """Pillow would start Ghostscript for this one."""
    Image.new("RGB", (20, 16)).save(image_folder / "0.eps")
    (image_folder / "0.eps").rename(image_folder / "0.png")
    with pytest.raises(FeraError, match=r"0\.png is no picture that can be read"):
        check_images(find(image_folder), skip_bad=False)


def test_scaling_from_a_box_is_scaling_and_then_cropping():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8))
    scaled = image.resize((50, 30), Image.Resampling.LANCZOS).crop((10, 0, 40, 30))
    expected = torch.from_numpy(np.asarray(scaled, dtype=np.float32).copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(to_tensor(image, (30, 30)), expected, atol=0.01, rtol=0)
