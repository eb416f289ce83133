"""What SDXL is told of a picture's size and crop, against diffusers' train_text_to_image_lora_sdxl.py by hand."""

from functools import wraps

import pytest
import torch
from diffusers import UNet2DConditionModel
from family_cases import FAMILY_CASES
from PIL import Image
from training_cases import run_config

from fera.data.checking import Example, crop_offset
from fera.data.tensors import to_tensor
from fera.models.placement import place
from fera.support.files import file_digest
from fera.training import train


def script(picture, size, offset, mirrored):
    """Resize to the shorter side (torchvision cuts the other to whole pixels), flip, crop, compute_time_ids.

    Off centre, where the script draws a place, it is at the offset.
    """
    width, height = picture
    scale = max(size[0] / width, size[1] / height)
    resized = [max(kept, int(side * scale + 1e-9)) for side, kept in zip((width, height), size, strict=True)]
    y1, x1 = (int(round((side - kept) * offset)) for side, kept in zip(resized[::-1], size[::-1], strict=True))
    if mirrored:
        x1 = resized[0] - size[0] - x1
    return (height, width, y1, x1, size[1], size[0])


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("offset", [0.5, 0.0, 0.2, 1.0])
@pytest.mark.parametrize(
    ("picture", "size"),
    [
        ((40, 24), (16, 16)),
        ((24, 40), (16, 16)),
        ((1000, 1500), (512, 512)),
        ((900, 500), (640, 384)),
        ((8, 8), (16, 16)),
    ],
)
def test_as_the_script_has_it(picture, size, offset, mirrored):
    placed = place(picture, size, offset, mirrored=mirrored)
    told = (*placed.original[::-1], placed.top, placed.left, *placed.size[::-1])
    assert told == script(picture, size, offset, mirrored)


def test_the_value_of_the_report():
    placed = place((40, 24), (16, 16), 0.5)
    assert (placed.original, placed.left, placed.top, placed.size) == ((40, 24), 5, 0, (16, 16))


def test_it_is_where_the_pixels_are():
    """A column of light in a dark picture: in the crop it stands where the placement says."""
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (12, 0, 14, 20))
    placed = place(image.size, (20, 20), 0.3)
    assert placed.left == 6
    assert to_tensor(image, (20, 20), 0.3)[0, 10].argmax() in (12 - 6, 13 - 6)


@pytest.fixture
def told(monkeypatch):
    """What the UNet is told of sizes in each training forward."""
    calls = []
    forward = UNet2DConditionModel.forward

    @wraps(forward)
    def spy(self, *args, **kwargs):
        if torch.is_grad_enabled():
            calls.extend(map(tuple, kwargs["added_cond_kwargs"]["time_ids"].tolist()))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(UNet2DConditionModel, "forward", spy)
    return calls


@pytest.mark.parametrize(
    ("data", "sections"),
    [
        ({}, {}),
        ({"enable_bucket": True}, {}),
        ({"center_crop": False, "random_flip": True}, {}),
        ({}, {"text_encoder": {"train_text_encoder": True, "r": 1}}),
    ],
    ids=["square", "buckets", "flipped", "text"],
)
def test_training_tells_each_picture_its_own(image_folder, tmp_path, told, data, sections):
    FAMILY_CASES["sdxl"][0]().save_pretrained(tmp_path / "base")
    for path in image_folder.iterdir():
        path.unlink()
    pictures = {image_folder / f"{number}.png": size for number, size in enumerate([(40, 24), (24, 40), (16, 16)])}
    for path, size in pictures.items():
        Image.linear_gradient("L").resize(size).convert("RGB").save(path)
        path.with_suffix(".txt").write_text("a red rocket")
    data = {"resolution": 16} | data
    train(run_config(tmp_path / "base", image_folder, tmp_path / "run", data=data, train={"steps": 12}, **sections))
    assert len(told) >= 12
    buckets = {(40, 24): (20, 12), (24, 40): (12, 20)} if data.get("enable_bucket") else {}
    expected = {
        script(size, buckets.get(size, (16, 16)), offset_of(path, data), mirrored)
        for path, size in pictures.items()
        for mirrored in (False, data.get("random_flip", False))
    }
    # Of the wide picture alone the mirror image is cropped elsewhere.
    assert set(told) == expected and len(expected) == (4 if data.get("random_flip") else 3)


def offset_of(path, data):
    """Where a picture is cropped."""
    example = Example(path, "", digest=file_digest(path))
    return crop_offset(example, center_crop=data.get("center_crop", True), seed=0)
