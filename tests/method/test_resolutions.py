"""Latents of any size and aspect: what the indicator sees, what it costs, and that it routes."""

import math

import pytest
import torch
from peft import get_peft_model
from torch.nn import functional

import fera
from fera import FeraConfig, FrequencyBands
from fera.method.bands import _CACHE_SIZE

# The finest scale is at least half a pixel from a shorter side of eight pixels up.
KAPPA = 1 / 16
ASPECTS = {
    "1:1": [(16, 16), (17, 17), (33, 33), (64, 64), (101, 101), (256, 256)],
    "2:1": [(16, 32), (21, 42), (64, 128), (127, 254)],
    "1:4": [(64, 16), (68, 17), (132, 33), (256, 64)],
    "5:3": [(18, 30), (27, 45), (96, 160), (153, 255)],
}


def waves(height: int, width: int, most: int = 15) -> torch.Tensor:
    """A picture that every grid of 16 pixels and more can hold, sampled on one, shape (1, 4, H, W)."""
    generator = torch.Generator().manual_seed(0)
    amounts = torch.randn(4, most, most, generator=generator, dtype=torch.float64)
    amounts /= 1 + torch.arange(most)[:, None] + torch.arange(most)

    def cosines(size: int) -> torch.Tensor:
        place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        return torch.cos(math.pi * torch.arange(most)[:, None] * place)

    return (cosines(height).T @ amounts @ cosines(width))[None]


@pytest.mark.parametrize("kappa", [1 / 32, KAPPA, 1 / 4])
@pytest.mark.parametrize("sizes", ASPECTS.values(), ids=ASPECTS)
def test_a_picture_and_its_copy_at_another_size_have_the_same_shares(sizes, kappa):
    bands = FrequencyBands(3, kappa)
    shares = torch.cat([bands.indicator(waves(*size)) for size in sizes])
    assert torch.allclose(shares, shares[:1].expand_as(shares), atol=1e-9)
    assert shares.min() > 1e-3


@pytest.mark.parametrize("size", [(48, 48), (101, 101), (128, 128)])
def test_a_picture_scaled_by_a_resampling_filter_has_nearly_the_same_shares(size):
    picture = waves(256, 256)
    scaled = functional.interpolate(picture, size=size, mode="bicubic", antialias=True)
    bands = FrequencyBands(3, KAPPA)
    assert torch.allclose(bands.indicator(scaled), bands.indicator(picture), atol=0.02)


def test_a_turned_picture_has_the_same_shares():
    bands, picture = FrequencyBands(4, KAPPA), waves(40, 160)
    assert torch.allclose(bands.indicator(picture), bands.indicator(picture.transpose(2, 3)))


def test_below_the_floor_sizes_do_not_compare():
    """Where kappa * side is under half a pixel; docs/method.md says where that is."""
    bands = FrequencyBands(3, 1 / 128)
    small, at_the_floor, large = (bands.indicator(waves(size, size)) for size in (16, 64, 256))
    assert torch.allclose(at_the_floor, large, atol=1e-9)
    assert small[0, -1] > 100 * large[0, -1]


def test_noise_is_no_resized_picture():
    """White in pixels: a larger grid holds more of it in the finest band. docs/method.md says so."""
    bands = FrequencyBands(3, KAPPA)
    high = [
        bands.indicator(torch.randn(1, 16, size, size, generator=torch.Generator().manual_seed(0)))[0, -1]
        for size in (16, 64, 256)
    ]
    assert high[0] + 0.02 < high[1] < high[2]


def make_deep_unet(tiny_unet):
    """Attention at the lowest of four levels only, so that large latents are cheap."""
    return tiny_unet(
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 8, 8, 16),
        norm_num_groups=4,
    )


def test_latents_of_every_size_route(tiny_unet):
    model = get_peft_model(make_deep_unet(tiny_unet), FeraConfig(r=2, num_bands=3, kappa=KAPPA)).eval()
    sizes = [(8, 8), (8, 32), (32, 8), (13, 52), (33, 65), (64, 64), (256, 64), (256, 256)]
    for height, width in sizes:
        latent = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), fera.trace(model) as routings:
            output = model(latent, 10, torch.zeros(1, 3, 32))[0]
        assert output.shape == latent.shape and output.isfinite().all()
        assert torch.equal(routings[0].indicator, FrequencyBands(3, KAPPA).indicator(latent))


def test_sizes_without_end_do_not_fill_the_memory():
    bands, first = FrequencyBands(3), torch.randn(1, 1, 8, 8)
    before = bands.indicator(first)
    for side in range(8, 8 + 2 * _CACHE_SIZE):
        bands.indicator(torch.zeros(1, 1, side, 8))
        assert len(bands._cache) <= _CACHE_SIZE
    assert torch.equal(bands.indicator(first), before)
