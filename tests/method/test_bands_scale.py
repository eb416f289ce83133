"""Frequency bands: size, scale and precision of a latent, and what must not matter in it."""

import pytest
import torch
from bands_cases import mode, noise

from fera import FrequencyBands


def smooth(height, width, modes, seed=0):
    """The same picture sampled on any grid: a sum of fewer waves than the grid resolves."""
    weights = noise(modes, modes, seed=seed)
    return sum(weights[u, v] * mode(u, v, height, width) for u in range(modes) for v in range(modes))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96)])
def test_a_picture_and_its_larger_copy_agree(height, width):
    bands = FrequencyBands(3)
    shares = bands.indicator(smooth(height, width, 40))
    assert shares.min() > 0.01  # or the comparison would say nothing
    for factor in (2, 3):
        larger = bands.indicator(smooth(factor * height, factor * width, 40))
        torch.testing.assert_close(larger, shares, rtol=1e-9, atol=1e-12)


def test_a_resized_latent_agrees():
    bands = FrequencyBands(3, kappa=1 / 32)
    latent = smooth(64, 64, 24)
    smaller = torch.nn.functional.interpolate(latent, size=(48, 48), mode="bicubic", antialias=True)
    torch.testing.assert_close(bands.indicator(smaller), bands.indicator(latent), rtol=0, atol=0.02)


def test_below_64_pixels_the_floor_acts_and_sizes_are_not_comparable():
    assert FrequencyBands(3).sigmas(64, 80) == [0.5, 1.0]
    assert FrequencyBands(3).sigmas(128, 64) == [0.5, 1.0]
    assert FrequencyBands(3).sigmas(256, 128) == [1.0, 2.0]
    for size in (2, 8, 16, 32, 63):
        assert FrequencyBands(3).sigmas(size, size) == [0.5, 1.0]
    assert FrequencyBands(4, kappa=1 / 16).sigmas(32, 32) == [2.0, 4.0, 8.0]
    small, large = smooth(32, 32, 30), smooth(64, 64, 30)
    floored, free = FrequencyBands(3), FrequencyBands(3, min_sigma=0)
    assert (floored.indicator(small) - floored.indicator(large)).abs().max() > 0.05
    torch.testing.assert_close(free.indicator(small), free.indicator(large), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-25, 1e-10, 7.0, 1e10, 1e25])
def test_shares_do_not_depend_on_the_scale(scale):
    latent = noise(2, 4, 16, 16, dtype=torch.float32)
    bands = FrequencyBands(3)
    torch.testing.assert_close(bands.indicator(latent * scale), bands.indicator(latent), rtol=1e-5, atol=1e-7)


def test_energies_grow_with_the_square_of_the_scale():
    latent = noise(1, 4, 16, 16)
    torch.testing.assert_close(
        FrequencyBands(3).energies(3 * latent), 9 * FrequencyBands(3).energies(latent), rtol=1e-12, atol=0
    )


def test_float32_is_near_float64():
    latent = noise(4, 4, 64, 64)
    exact = FrequencyBands(3).indicator(latent)
    single = FrequencyBands(3).indicator(latent.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["energies", "indicator", "split"])
def test_float32_under_autocast(method):
    latent = noise(2, 4, 16, 16, dtype=torch.float32)
    plain = getattr(FrequencyBands(3), method)(latent)
    with torch.autocast("cpu", torch.bfloat16):
        assert (latent[0, 0] @ latent[0, 0]).dtype == torch.bfloat16  # autocast is on
        under_autocast = getattr(FrequencyBands(3), method)(latent)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["energies", "indicator", "split"])
def test_half_precision_latents_are_computed_in_float32(dtype, method):
    latent = noise(2, 4, 16, 16, dtype=dtype)
    result = getattr(FrequencyBands(3), method)(latent)
    assert result.dtype == torch.float32
    assert torch.equal(result, getattr(FrequencyBands(3), method)(latent.float()))


def test_a_half_precision_latent_near_its_largest_value_does_not_overflow():
    latent = noise(1, 4, 16, 16).clamp(-1, 1)
    shares = FrequencyBands(3).indicator((latent * 60000).half())
    torch.testing.assert_close(shares.double(), FrequencyBands(3).indicator(latent), rtol=0, atol=1e-4)


def test_channels_add_up():
    bands, latent = FrequencyBands(3), noise(2, 5, 8, 12)
    apart = sum(bands.energies(latent[:, c : c + 1]) for c in range(5))
    torch.testing.assert_close(bands.energies(latent), apart, rtol=1e-12, atol=0)


def test_samples_do_not_see_each_other():
    bands, latent = FrequencyBands(3), noise(3, 4, 8, 12) * torch.tensor([1.0, 1e-6, 1e6]).view(3, 1, 1, 1)
    apart = torch.cat([bands.indicator(sample[None]) for sample in latent])
    torch.testing.assert_close(bands.indicator(latent), apart, rtol=1e-10, atol=0)


def test_turning_a_picture_changes_nothing():
    bands, latent = FrequencyBands(3), noise(1, 2, 8, 12)
    for turned in (latent.transpose(2, 3), latent.flip(2), latent.flip(3)):
        torch.testing.assert_close(bands.indicator(turned), bands.indicator(latent), rtol=1e-10, atol=0)


def test_a_strided_latent():
    latent = noise(2, 8, 16, 32)[:, ::2, :, ::2]
    assert torch.allclose(FrequencyBands(3).indicator(latent), FrequencyBands(3).indicator(latent.contiguous()))
