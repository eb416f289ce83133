"""Masks, from a picture's file to the gradient."""

import json

import numpy as np
import pytest
import torch
from cache_cases import entries
from listeners import train
from PIL import Image
from training_cases import log_of, run_config

from fera import FeraError, FrequencyBands
from fera.cli.main import main
from fera.config import DataConfig
from fera.data.cache.encoder import Encoder
from fera.data.checking import check_images
from fera.data.images import load_gray
from fera.data.masks import add_masks
from fera.data.sources import find_examples
from fera.data.tensors import to_weights
from fera.models.families import family_of
from fera.models.noise import NoiseProcess
from fera.pipelines.base import load_base
from fera.training.step.losses import denoising_losses


def losses(prediction, mask=None, base=None):
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8)
    process, timesteps = NoiseProcess("flow_prediction", 1000), torch.full((2,), 500.0)
    bands = FrequencyBands(3, 1 / 16)
    return denoising_losses(process, latents, noise, timesteps, lambda z, t: prediction, base, bands, mask)


@pytest.fixture
def left_half():
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    return mask


def test_a_white_mask_changes_nothing():
    prediction = torch.randn(2, 4, 8, 8)
    masked, plain = (losses(prediction, mask, lambda z, t: z) for mask in (torch.ones(2, 1, 8, 8), None))
    torch.testing.assert_close(masked.denoising, plain.denoising)
    torch.testing.assert_close(masked.consistency, plain.consistency)


def test_the_loss_is_the_mean_under_the_mask(left_half):
    prediction = torch.randn(2, 4, 8, 8)
    torch.manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8)
    expected = (prediction - (noise - latents)).square()[..., :4].mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses(prediction, left_half).denoising, expected)
    # Half as strong everywhere is the same mask.
    torch.testing.assert_close(losses(prediction, left_half / 2).denoising, expected)


def test_nothing_is_learned_where_the_mask_is_black(left_half):
    prediction = torch.randn(2, 4, 8, 8, requires_grad=True)
    found = losses(prediction, left_half, lambda z, t: z)
    (found.denoising.sum() + found.consistency).backward()
    assert (prediction.grad[..., 4:] == 0).all() and (prediction.grad[..., :4] != 0).all()


def test_a_wholly_black_crop_has_a_finite_loss():
    prediction = torch.randn(2, 4, 8, 8, requires_grad=True)
    found = losses(prediction, torch.zeros(2, 1, 8, 8)).denoising
    found.sum().backward()
    assert (found == 0).all() and prediction.grad.isfinite().all()


def test_weights_are_means_over_the_latents_pixels():
    mask = np.zeros((16, 32), dtype=np.uint8)
    mask[:, :10] = 255
    weights = to_weights(Image.fromarray(mask), (32, 16), (8, 4))
    assert weights.shape == (1, 4, 8)
    torch.testing.assert_close(weights[0, 0], torch.tensor([1, 1, 0.5, 0, 0, 0, 0, 0]), atol=0.01, rtol=0)
    # The crop goes with the picture's.
    assert (to_weights(Image.fromarray(mask), (16, 16), (8, 8), offset=1.0) == 0).all()


@pytest.fixture
def masks(image_folder, tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for number in range(4):
        mask = Image.new("L", (20, 16), 0)
        mask.paste(255, (0, 0, 10, 16))
        mask.save(folder / f"{number}.png")
    return folder


def find(folder, **settings):
    config = DataConfig(train_data_dir=folder, **settings)
    return check_images(add_masks(find_examples(folder, config), config), skip_bad=config.skip_bad)


def test_masks_that_cannot_be_used_are_named(image_folder, masks):
    assert all(example.mask_digest for example in find(image_folder, mask_path=masks)[0])
    Image.new("L", (20, 16)).save(masks / "0.png")
    Image.new("L", (16, 20), 255).save(masks / "1.png")
    (masks / "2.png").write_bytes(b"x")
    with pytest.raises(FeraError) as caught:
        find(image_folder, mask_path=masks)
    message = str(caught.value)
    assert "0.png, that is black" in message and "of another shape (16 x 20, the picture 20 x 16)" in message
    assert "2.png, that is no picture" in message
    (masks / "3.png").unlink()
    with pytest.raises(FeraError, match=r"1 of 4 pictures have no mask .*3\.png"):
        find(image_folder, mask_path=masks)
    with pytest.raises(FeraError, match="is no folder"):
        find(image_folder, mask_path=masks / "absent")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_white_mask_on_transparent_ground_counts_where_it_is_white(tmp_path, mode):
    """As drawing programs save a mask that was painted on a layer of its own."""
    opacity = np.zeros((16, 20), dtype=np.uint8)
    opacity[:, :10], opacity[:, 10] = 255, 51
    mask = Image.new("RGBA", (20, 16), "white")
    mask.putalpha(Image.fromarray(opacity))
    if mode == "P":  # one index is transparent, and is white beneath
        mask = Image.fromarray((opacity == 0).astype(np.uint8), mode="P")
        mask.putpalette([255, 255, 255] * 2)
    else:
        mask = mask.convert(mode)
    mask.save(tmp_path / "mask.png", **({"transparency": 1} if mode == "P" else {}))
    expected = np.where(opacity > 0, 255, 0) if mode == "P" else opacity
    np.testing.assert_array_equal(np.asarray(load_gray(tmp_path / "mask.png")), expected)


def test_a_mask_that_is_black_or_nothing_is_refused(image_folder, masks):
    Image.new("LA", (20, 16), (255, 0)).save(masks / "0.png")
    Image.new("LA", (20, 16), (0, 128)).save(masks / "1.png")
    with pytest.raises(FeraError, match=r"2 of 4 .*0\.png, that is black.*1\.png, that is black"):
        find(image_folder, mask_path=masks)


def test_a_mask_of_several_pictures_is_said(tiny_sd_dir, image_folder, masks, tmp_path, capsys):
    Image.new("RGB", (20, 16), "red").save(image_folder / "0.bmp")
    line = f"{masks / '0.png'} is the mask of 2 pictures: 0.bmp, 0.png"
    assert main(["data", "check", str(image_folder), "--data.mask_path", str(masks), "--json"]) == 0
    assert line in json.loads(capsys.readouterr().out)["notes"]
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "run", data={"mask_path": masks}, train={"steps": 1}))
    said = " ".join(capsys.readouterr().err.split())
    assert "0.png is the mask of 2 pictures" in said and "0.txt is the caption of 2 pictures" in said


def test_opacity_as_a_mask(image_folder):
    picture = Image.new("RGBA", (20, 16), (255, 0, 0, 255))
    picture.save(image_folder / "0.png")
    picture.putalpha(0)
    picture.save(image_folder / "1.png")
    with pytest.raises(FeraError, match=r"1\.png is wholly transparent"):
        find(image_folder, alpha_mask=True)
    assert len(find(image_folder, alpha_mask=True, skip_bad=True)[0]) == 3


def test_masks_are_encoded_once_mirrored_and_lifted(tiny_sd_dir, image_folder, masks, tmp_path):
    encoder = Encoder(
        pipe=(pipe := load_base(str(tiny_sd_dir))),
        family=family_of(pipe),
        folder=tmp_path / "cache",
        device=torch.device("cpu"),
        buckets=[(16, 16)],
        center_crop=True,
        random_flip=True,
        seed=0,
        progress=lambda *_: None,
        mask_min_value=0.2,
    )
    examples, _ = find(image_folder, mask_path=masks)
    encoded = encoder.encode(examples)
    plain, mirrored = encoded.batch([0, 0], flipped=[False, True]).mask
    assert plain.shape == (1, 8, 8)
    torch.testing.assert_close(plain.flip(-1), mirrored)
    assert plain.max() == 1 and plain.min() == pytest.approx(0.2)
    assert len(entries(tmp_path / "cache", "mask")) == 2 * 4
    assert encoder.encode(examples) == encoded
    Image.new("L", (20, 16), 255).save(masks / "0.png")
    changed = encoder.encode(find(image_folder, mask_path=masks)[0])
    assert (changed.batch([0]).mask == 1).all() and changed.latents == encoded.latents


def test_training_with_masks(tiny_sd_dir, image_folder, masks, tmp_path):
    config = run_config(
        tiny_sd_dir,
        image_folder,
        tmp_path / "run",
        data={"mask_path": masks, "validation_fraction": 0.25},
        train={"steps": 2, "consistency_weight": 0.1},
    )
    assert train(config).held_out_loss_after is not None
    assert len(log_of(config, "loss")) == 2
