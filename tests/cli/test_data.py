"""`fera data check` as typed."""

import json
import shutil

import pytest
from PIL import Image

from fera.cli.main import main


def check(capsys, *arguments):
    code = main(["data", "check", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else captured.err


def test_a_folder_alone(image_folder, capsys):
    code, report = check(capsys, image_folder, "--data.trigger_word", "ohwx")
    assert code == 0 and report["layout"] == "flat" and report["pictures"] == 4 and report["problems"] == []
    assert report["samples"][0] == ["0.png", "ohwx, a red rocket"]
    assert report["smallest"] == report["largest"] == [20, 16] and report["sizes"] == {}
    assert main(["data", "check", str(image_folder)]) == 0
    assert "training would take this" in capsys.readouterr().out


def test_where_each_picture_goes(image_folder, capsys):
    Image.new("RGB", (100, 10), "red").save(image_folder / "0.png")
    flags = ["--data.resolution", 64, "--data.enable_bucket", "--train.batch_size", 2]
    code, report = check(capsys, image_folder, *flags)
    assert code == 0 and len(report["sizes"]) == 4 and report["sizes"]["0.png"] == [128, 32]
    assert report["cropped"] == ["0.png"] and len(report["enlarged"]) == 4
    assert "128 x 32: 1 picture, 1 batch, the last of 1" in report["buckets"]


def test_a_list_of_all_pictures(image_folder, tmp_path, capsys):
    Image.new("RGB", (100, 10), "red").save(image_folder / "0.png")
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in image_folder.glob("*.png"):
        Image.new("L", Image.open(path).size, 255).save(masks / path.name)
    flags = ["--data.resolution", 64, "--data.enable_bucket", "--data.validation_fraction", 0.25]
    code, report = check(capsys, image_folder, "--data.mask_path", masks, *flags)
    listing = {picture["name"]: picture for picture in report["listing"]}
    assert code == 0 and len(listing) == 4 and report["held_out"] == 1
    # 128 x 32 is four times as wide as high: of the banner's 100 x 10 pixels 40 x 10 in the middle.
    banner = {"name": "0.png", "size": [100, 10], "repeats": 1, "bucket": [128, 32], "crop": [30, 0, 40, 10]}
    about = {"caption": "a red rocket", "mask": str(masks / "0.png"), "sources": [], "held_out": True, "colours": ""}
    about["clip"] = about["sound"] = None
    assert listing["0.png"] == banner | about
    assert main(["data", "check", str(image_folder), "--list", "--data.mask_path", str(masks), *map(str, flags)]) == 0
    shown = capsys.readouterr().out
    mask = masks / "0.png"
    assert f"0.png: 100 x 10 to 128 x 32, 40 x 10 of it from 30, 0, held out, mask {mask}: a red rocket" in shown
    assert main(["data", "check", str(image_folder), "--list"]) == 0
    assert "1.png: 20 x 16: a green tree" in capsys.readouterr().out
    assert main(["data", "check", str(image_folder)]) == 0
    assert "1.png: 20 x 16" not in capsys.readouterr().out


@pytest.mark.parametrize("buckets", ["false", "true"])
def test_the_crop_off_centre_is_the_one_that_is_trained_on(image_folder, capsys, buckets):
    flags = ["--data.resolution", 16, "--data.center_crop", "false", "--data.enable_bucket", buckets]
    _, report = check(capsys, image_folder, *flags)
    from fera.data.images import load_image
    from fera.data.tensors import to_tensor

    # A ramp shows where a crop begins.
    ramp = Image.linear_gradient("L").rotate(90).resize((20, 16))
    for picture in report["listing"]:
        left, top, width, height = picture["crop"]
        assert (top, width, height) == (0, 16, 16) and 0 <= left <= 4
    lefts = {picture["name"]: picture["crop"][0] for picture in report["listing"]}
    assert len(set(lefts.values())) == 4
    ramp.save(image_folder / "0.png")
    _, report = check(capsys, image_folder, *flags)
    left = report["listing"][0]["crop"][0]
    pixels = to_tensor(load_image(image_folder / "0.png"), (16, 16), left / 4)
    expected = to_tensor(load_image(image_folder / "0.png").crop((round(left), 0, round(left) + 16, 16)), (16, 16))
    assert (pixels == expected).all()


def test_everything_that_is_wrong_is_told_at_once(image_folder, capsys):
    (image_folder / "0.png").write_bytes(b"x")
    (image_folder / "1.txt").unlink()
    shutil.copy(image_folder / "2.png", image_folder / "9.png")
    (image_folder / "9.txt").write_text("again")
    code, report = check(capsys, image_folder, "--data.class_data_dir", image_folder.parent / "none")
    assert code == 2 and len(report["problems"]) == 3
    problems = " ".join(report["problems"])
    assert "1.png" in problems and "1 of 5 pictures" in problems and "no class pictures" in problems
    assert "0.png is no picture" in report["bad"][0]
    assert report["duplicates"] == [["2.png", "9.png"]]
    assert main(["data", "check", str(image_folder)]) == 2
    shown = capsys.readouterr().out
    assert "training would refuse" in shown and "2.png = 9.png" in shown
    # As training would: it skips what it is told to skip.
    flags = ["--data.skip_bad", "--data.allow_missing_captions"]
    assert check(capsys, image_folder, *flags)[0] == 0


def test_pictures_that_are_trained_on_and_held_out(image_folder, capsys):
    code, report = check(capsys, image_folder, "--data.validation_data_dir", image_folder)
    assert code == 0 and len(report["leaked"]) == 4


def test_a_configuration_with_its_base(tiny_sd_dir, image_folder, tmp_path, capsys):
    (image_folder / "0.txt").write_text("a red rocket " * 20)
    (tmp_path / "c.toml").write_text(
        f'base = "{tiny_sd_dir}"\noutput_dir = "{tmp_path / "out"}"\n'
        f'[data]\ntrain_data_dir = "{image_folder}"\nrandom_flip = true\n[train]\nsteps = 100\nbatch_size = 2\n'
        '[adapter]\nkappa = "auto"\n'
    )
    code, report = check(capsys, tmp_path / "c.toml")
    assert code == 0 and report["text_limits"] == [
        {"encoder": "text_encoder", "tokens": 16, "cut": {"0.png": "rocket a red rocket a red rocket a red r…"}}
    ]
    assert main(["data", "check", str(tmp_path / "c.toml")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "16 by text_encoder" in shown and "captions cut at the 16 tokens that text_encoder reads: 1 (0.png)" in shown
    costs = report["estimates"]
    assert costs["latents"] == 8 and costs["captions"] == 5 and costs["trained_parameters"] > 0
    assert costs["training_seconds"] == pytest.approx(100 * costs["step_seconds"])
    assert not (tmp_path / "out").exists()
    assert main(["train", str(tmp_path / "c.toml"), "--train.steps", "1", "--adapter.kappa", "0.1"]) == 0
    cached = sum(path.stat().st_size for path in (tmp_path / "out" / "cache").iterdir())
    assert costs["cache_bytes"] == pytest.approx(cached, rel=0.1)
    # The base's own demands are problems too.
    assert check(capsys, tmp_path / "c.toml", "--data.resolution", 17)[1]["problems"]
    assert check(capsys, tmp_path / "c.toml", "--without-base")[1]["estimates"] is None


def test_nothing_there(tmp_path, capsys):
    code, report = check(capsys, tmp_path / "absent")
    assert code == 2 and "does not exist" in report["problems"][0]
    assert main(["data", "check", str(tmp_path / "absent.toml")]) == 2
    assert main(["data", "check"]) == 2
    assert "missing key data.train_data_dir: set it, or data.dataset_name" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path), "--data.resolutoin", "64"]) == 2
    assert "did you mean" in capsys.readouterr().err
