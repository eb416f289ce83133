"""Colour profiles, against the arithmetic of their definitions in float64."""

import json
import struct

import numpy as np
import pytest
import torch
from listeners import train
from PIL import Image, ImageCms
from training_cases import run_config

from fera.cli.main import main
from fera.config import DataConfig
from fera.data.cache.encoder import Encoder
from fera.data.checking import check_images, find_examples
from fera.data.images import load_gray, load_image
from fera.models.families import family_of
from fera.pipelines.base import load_base

D50 = np.array([0.9642, 1.0, 0.8249])
D65 = np.array([0.3127 / 0.3290, 1.0, (1 - 0.3127 - 0.3290) / 0.3290])
PRIMARIES = {"sRGB": [(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)], "P3": [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)]}
# sRGB's curve, which Display P3 shares: (a x + b) ^ g from d on, c x below.
CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def to_xyz(space):
    """Matrix from linear RGB to XYZ for the white point D65."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in PRIMARIES[space]]).T
    return columns * np.linalg.solve(columns, D65)


def linear(values):
    return np.where(values < 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(values):
    values = values.clip(0, 1)
    return np.where(values < 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)


def p3_to_srgb(pixels):
    """What a Display P3 picture's levels are in sRGB; beyond its gamut, cut."""
    light = linear(np.asarray(pixels, dtype=np.float64) / 255)
    return 255 * encoded(light @ (np.linalg.inv(to_xyz("sRGB")) @ to_xyz("P3")).T)


def fixed(*values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def text(words):
    content = words.encode("utf-16-be")
    return b"mluc" + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, len(content), 28) + content


def profile(space, tags):
    """An ICC profile of version 4."""
    tags = {b"cprt": text("none"), b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50)} | tags
    head, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        head += name + struct.pack(">II", at + len(body), len(content))
        body += content + b"\0" * (-len(content) % 4)
    table = struct.pack(">I", len(tags)) + head + body
    start = struct.pack(">I4sI4s4s4s", 128 + len(table), b"\0" * 4, 0x04300000, b"mntr", space, b"XYZ ")
    start += struct.pack(">6H4s4sI8s", 2026, 1, 1, 0, 0, 0, b"acsp", b"\0" * 4, 0, b"\0" * 8)
    return (start + b"\0" * 12 + fixed(*D50)).ljust(128, b"\0") + table


def display_p3(name="Display P3"):
    # Profiles are about D50: Bradford's transform from D65.
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    to_d50 = np.linalg.inv(bradford) @ np.diag((bradford @ D50) / (bradford @ D65)) @ bradford
    columns = (to_d50 @ to_xyz("P3")).T
    curve = b"para\0\0\0\0\0\x03\0\0" + fixed(*CURVE)
    tags = {
        name_: b"XYZ \0\0\0\0" + fixed(*column)
        for name_, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    }
    return profile(b"RGB ", {b"desc": text(name)} | tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def linear_gray():
    return profile(b"GRAY", {b"desc": text("Linear gray"), b"kTRC": b"curv\0\0\0\0\0\0\0\0"})


P3, GRAY = display_p3(), linear_gray()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def colours(count=400):
    pixels = np.random.default_rng(0).integers(0, 256, (20, count // 20, 3), dtype=np.uint8)
    pixels[0, :4] = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    return pixels


def levels(path):
    return np.asarray(load_image(path), dtype=np.float64)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.webp", {"lossless": True}), ("a.tiff", {}), ("a.tiff", {"compression": "tiff_lzw"})],
)
def test_display_p3_becomes_srgb(tmp_path, name, options):
    pixels = colours()
    Image.fromarray(pixels).save(tmp_path / name, icc_profile=P3, **options)
    expected = p3_to_srgb(pixels)
    assert np.abs(expected - pixels).max() > 40  # heeding it matters
    np.testing.assert_allclose(levels(tmp_path / name), expected, atol=0.6, rtol=0)
    info = load_image(tmp_path / name).info
    assert info["colours"] == "converted to sRGB from Display P3" and "icc_profile" not in info


def test_jpeg_and_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16), (200, 80, 60)).save(tmp_path / "a.jpg", icc_profile=P3, exif=exif, quality=100)
    image = load_image(tmp_path / "a.jpg")
    assert image.size == (16, 32) and "icc_profile" not in image.info
    np.testing.assert_allclose(image.getpixel((5, 5)), p3_to_srgb([200, 80, 60]), atol=2.5)


def test_transparency_is_laid_on_white_after_the_conversion(tmp_path):
    picture = Image.new("RGBA", (4, 4), (200, 80, 60, 102))
    picture.save(tmp_path / "a.png", icc_profile=P3)
    expected = 0.4 * p3_to_srgb([200, 80, 60]) + 0.6 * 255
    np.testing.assert_allclose(levels(tmp_path / "a.png")[0, 0], expected, atol=0.6)
    assert load_image(tmp_path / "a.png").info["colours"].endswith("Display P3")


def test_palettes(tmp_path):
    picture = Image.fromarray(colours()).quantize(16)
    picture.save(tmp_path / "a.png", icc_profile=P3)
    np.testing.assert_allclose(levels(tmp_path / "a.png"), p3_to_srgb(picture.convert("RGB")), atol=0.6)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_gray_profiles(tmp_path, mode):
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)
    picture = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    picture.save(tmp_path / "a.png", icc_profile=GRAY)
    found = levels(tmp_path / "a.png")[0]
    np.testing.assert_allclose(found, np.repeat(255 * encoded(ramp[0] / 255.0)[:, None], 3, 1), atol=0.6)
    assert load_image(tmp_path / "a.png").info["colours"] == "converted to sRGB from Linear gray"
    # Of a mask, the numbers count and not what they look like.
    np.testing.assert_array_equal(np.asarray(load_gray(tmp_path / "a.png")), ramp)


def test_a_gray_picture_with_a_profile_of_colours(tmp_path):
    Image.fromarray(np.arange(256, dtype=np.uint8)[None]).save(tmp_path / "a.png", icc_profile=P3)
    ramp = np.repeat(np.arange(256.0)[:, None], 3, 1)  # gray is gray in both, by the same curve
    np.testing.assert_allclose(levels(tmp_path / "a.png")[0], ramp, atol=1)


def test_srgb_pictures_are_bit_for_bit_as_they_were(tmp_path):
    Image.fromarray(colours()).save(tmp_path / "a.png", icc_profile=SRGB)
    image = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(image), colours())
    assert "colours" not in image.info and "icc_profile" not in image.info


@pytest.mark.parametrize(
    ("mode", "content", "note"),
    [
        ("RGB", b"garbage", "a colour profile that cannot be read, taken for sRGB"),
        ("RGB", P3[:200], "a colour profile that cannot be read, taken for sRGB"),
        ("RGB", GRAY, "a colour profile for other pictures (Linear gray, GRAY), taken for sRGB"),
        ("CMYK", P3, "a colour profile for other pictures (Display P3, RGB), taken for sRGB"),
        ("CMYK", b"", "CMYK without a colour profile, taken by rule of thumb"),
    ],
)
def test_profiles_that_are_of_no_use_are_said(tmp_path, mode, content, note):
    picture = Image.new("RGB", (16, 16), (200, 80, 60)).convert(mode)
    picture.save(tmp_path / "a.tiff", **({"icc_profile": content} if content else {}))
    image = load_image(tmp_path / "a.tiff")
    assert image.getpixel((3, 3)) == (200, 80, 60) and image.info["colours"] == note


def test_cielab(tmp_path):
    # L* 50, a* = b* = 0 is the gray of 18.4 % of the light.
    Image.new("LAB", (4, 4), (128, 128, 128)).save(tmp_path / "a.tiff")
    light = ((128 / 255 * 100 + 16) / 116) ** 3
    np.testing.assert_allclose(levels(tmp_path / "a.tiff")[0, 0], 255 * encoded(np.array([light] * 3)), atol=0.6)


def test_it_is_said_in_check_and_in_training(tiny_sd_dir, image_folder, tmp_path, capsys):
    (tmp_path / "class").mkdir()
    Image.new("RGB", (20, 16), "red").save(tmp_path / "class" / "c.png", icc_profile=P3)
    (tmp_path / "class" / "c.txt").write_text("x")
    for number, content in enumerate((display_p3("Dis\x1b[31mplay P3"), display_p3("Dis\x1b[31mplay P3"), SRGB)):
        Image.new("RGB", (20, 16), "red").save(image_folder / f"{number}.png", icc_profile=content)
    line = "2 x converted to sRGB from Dis [31mplay P3: 0.png, 1.png"
    flags = [str(image_folder), "--data.class_data_dir", str(tmp_path / "class")]
    assert main(["data", "check", *flags, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["colours"] == [line, "1 x converted to sRGB from Display P3: c.png"]
    assert [bool(picture["colours"]) for picture in report["listing"]] == [True, True, False, False]
    assert main(["data", "check", *flags, "--list"]) == 0
    shown = capsys.readouterr().out
    assert line in shown and "0.png: 20 x 16, converted to sRGB from Dis [31mplay P3: a red rocket" in shown
    data = {"class_data_dir": tmp_path / "class", "validation_fraction": 0.3}
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "run", data=data, train={"steps": 1}))
    said = " ".join(capsys.readouterr().err.split())
    assert "Dis [31mplay P3: " in said and "1 x converted to sRGB from Display P3: c.png" in said


def test_the_cache_has_other_files_where_colours_are_converted(tiny_sd_dir, image_folder, tmp_path):
    """A cache of before profiles were heeded has their latents under the former names."""
    encoder = Encoder(
        pipe=(pipe := load_base(str(tiny_sd_dir))),
        family=family_of(pipe),
        folder=tmp_path / "cache",
        device=torch.device("cpu"),
        buckets=[(16, 16)],
        center_crop=True,
        random_flip=False,
        seed=0,
        progress=lambda *_: None,
    )
    Image.fromarray(colours()).save(image_folder / "0.png", icc_profile=P3)
    Image.fromarray(colours()).save(image_folder / "1.png", icc_profile=SRGB)
    config = DataConfig(train_data_dir=image_folder)
    examples, _ = check_images(find_examples(image_folder, config), skip_bad=False)
    encoded_now = encoder.encode(examples)
    before = [type(example)(**{**vars(example), "colours": ""}) for example in examples]
    files, former = encoded_now.latents, encoder.encode(before).latents
    assert [one == other for one, other in zip(files, former, strict=True)] == [False, True, True, True]
    assert not torch.equal(encoded_now.latent(0), encoded_now.latent(1))
