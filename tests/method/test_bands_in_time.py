"""Frequency bands of sequences, in one dimension: the cases of two dimensions again."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from bands_cases import noise

from fera import FrequencyBands

LENGTHS = [2, 5, 16, 128, 1024]


def wave(u, length):
    """A basis function of the one-dimensional DCT-II, u half waves long; shape (1, 1, L)."""
    return torch.cos(math.pi * u * (torch.arange(length, dtype=torch.float64) + 0.5) / length)[None, None]


@pytest.mark.parametrize("num_bands", range(2, 7))
def test_a_sinusoid_in_time_lands_in_its_band(num_bands):
    length = 256
    bands = FrequencyBands(num_bands, kappa=1 / 128)
    peaks = [math.sqrt(math.log(4) / 1.5) / s for s in bands.sigmas(length)[:-1]][::-1]
    half_waves = [1, *(round(peak * length / math.pi) for peak in peaks), length - 1]
    for band, u in enumerate(half_waves):
        shares = bands.indicator(wave(u, length))[0]
        assert shares.argmax() == band, (band, u, shares)


def test_the_scales_follow_the_length():
    assert FrequencyBands(3).sigmas(1024) == [8.0, 16.0]
    assert FrequencyBands(3).sigmas(16) == [0.5, 1.0]
    assert FrequencyBands(3, kappa=1 / 4).sigmas(16) == [4.0, 8.0]


@pytest.mark.parametrize("num_bands", range(2, 7))
@pytest.mark.parametrize("length", LENGTHS)
def test_bands_in_time_sum_to_the_sound_and_hold_the_energies(num_bands, length):
    bands, sound = FrequencyBands(num_bands), noise(2, 3, length)
    parts = bands.split(sound)
    assert parts.shape == (2, num_bands, 3, length)
    torch.testing.assert_close(parts.sum(dim=1), sound, rtol=0, atol=1e-12)
    torch.testing.assert_close(bands.energies(sound), parts.square().sum(dim=(2, 3)), rtol=1e-11, atol=1e-11)
    transfer = bands.transfer(length, dtype=torch.float64)
    assert transfer.shape == (num_bands, length) and transfer[0, 0] == 1
    torch.testing.assert_close(transfer.sum(dim=0), torch.ones(length, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(bands.indicator(sound).sum(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("length", LENGTHS)
def test_energies_in_time_equal_the_formula_on_scipys_cosine_transform(length):
    bands, sound = FrequencyBands(3, kappa=1 / 50), noise(2, 3, length)
    power = np.square(scipy.fft.dct(sound.numpy(), axis=2, norm="ortho")).sum(axis=1)
    finest = max(length / 50, 0.5)
    fine, coarse = (np.exp(-((s * np.pi * np.arange(length) / length) ** 2) / 2) for s in (finest, 2 * finest))
    expected = np.stack([(power * transfer**2).sum(axis=1) for transfer in (coarse, fine - coarse, 1 - fine)], axis=1)
    np.testing.assert_allclose(bands.energies(sound).numpy(), expected, rtol=1e-11, atol=1e-11)


def test_bands_in_time_agree_with_a_blur():
    bands, sound = FrequencyBands(3, kappa=1 / 32), noise(2, 3, 96)
    blurs = [scipy.ndimage.gaussian_filter1d(sound.numpy(), s, mode="reflect", truncate=14) for s in (3.0, 6.0)]
    expected = np.stack([blurs[1], blurs[0] - blurs[1], sound.numpy() - blurs[0]], axis=1)
    np.testing.assert_allclose(bands.split(sound).numpy(), expected, atol=1e-11)


def test_a_sound_and_its_finer_sampled_copy_agree():
    weights = noise(300)
    coarse, fine = (sum(weights[u] * wave(u, length) for u in range(300)) for length in (512, 1024))
    bands = FrequencyBands(3)
    shares = bands.indicator(coarse)
    assert shares.min() > 1e-3
    torch.testing.assert_close(bands.indicator(fine), shares, rtol=1e-9, atol=1e-12)


def test_one_dimension_in_half_precision_is_computed_in_float32():
    sound = noise(2, 4, 64, dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        shares = FrequencyBands(3).indicator(sound)
    assert torch.equal(shares, FrequencyBands(3).indicator(sound.float()))
