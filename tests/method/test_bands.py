"""Frequency bands: analytic cases, a cosine transform and a spatial blur as oracles, properties, errors."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import torch
from bands_cases import mode, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from fera import FeraError, FrequencyBands

SIZES = [(2, 2), (3, 5), (7, 9), (16, 64), (64, 16), (33, 12), (64, 64)]


def blurred_bands(latent, sigmas):
    """The bands by spatial convolution with half-sample symmetric borders, float64; shape (B, K, C, H, W)."""
    blurs = [
        torch.from_numpy(scipy.ndimage.gaussian_filter(latent.numpy(), (0, 0, s, s), mode="reflect", truncate=14.0))
        for s in sigmas
    ]
    finer_to_coarser = [latent, *blurs, torch.zeros_like(latent)]
    bands = [a - b for a, b in zip(finer_to_coarser[:-1], finer_to_coarser[1:], strict=True)]
    return torch.stack(bands[::-1], dim=1)


# Analytic cases


@pytest.mark.parametrize("num_bands", range(2, 7))
def test_a_cosine_lands_in_its_band(num_bands):
    size = 128
    bands = FrequencyBands(num_bands, kappa=1 / 128)
    sigmas = bands.sigmas(size, size)
    # Half waves where a band is strongest: the ends of the axis for low and high, and in between where
    # exp(-s^2 w^2 / 2) - exp(-2 s^2 w^2) peaks.
    peaks = [math.sqrt(math.log(4) / 1.5) / s for s in sigmas[:-1]][::-1]
    half_waves = [1, *(round(peak * size / math.pi) for peak in peaks), size - 1]
    for band, u in enumerate(half_waves):
        shares = bands.indicator(mode(u, 0, size, size))[0]
        assert shares.argmax() == band, (band, u, shares)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_cosine_has_exactly_the_energy_its_transfer_function_says(height, width):
    bands = FrequencyBands(4)
    for u, v in [(0, 1), (1, 0), (height - 1, width - 1), (height // 2, width // 3)]:
        wave = 3.0 * mode(u, v, height, width)
        expected = bands.transfer(height, width, dtype=torch.float64)[:, u, v].square() * wave.square().sum()
        torch.testing.assert_close(bands.energies(wave)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_bands", range(2, 7))
def test_a_constant_is_all_low(num_bands):
    shares = FrequencyBands(num_bands).indicator(torch.full((1, 3, 9, 6), -2.5, dtype=torch.float64))
    expected = torch.zeros(1, num_bands, dtype=torch.float64)
    expected[0, 0] = 1
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-14)


def test_zeros_give_a_uniform_indicator_and_no_gradient():
    latent = torch.zeros(2, 4, 8, 8, requires_grad=True)
    shares = FrequencyBands(3).indicator(latent)
    assert torch.equal(shares, torch.full((2, 3), 1 / 3))
    shares[:, 0].sum().backward()
    assert torch.equal(latent.grad, torch.zeros_like(latent))


def test_zeros_beside_a_sample_leave_the_sample_alone():
    latent = noise(1, 4, 8, 8)
    both = torch.cat([torch.zeros_like(latent), latent])
    shares = FrequencyBands(3).indicator(both)
    torch.testing.assert_close(shares[1:], FrequencyBands(3).indicator(latent), rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_bands", range(2, 7))
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bands_sum_to_the_latent_and_hold_the_energies(num_bands, height, width):
    bands = FrequencyBands(num_bands)
    latent = noise(2, 3, height, width)
    parts = bands.split(latent)
    assert parts.shape == (2, num_bands, 3, height, width)
    torch.testing.assert_close(parts.sum(dim=1), latent, rtol=0, atol=1e-12)
    # Parseval, band by band: the energy over frequencies is the energy over pixels.
    torch.testing.assert_close(bands.energies(latent), parts.square().sum(dim=(2, 3, 4)), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_parseval(height, width):
    # With the finest Gaussian vanishingly narrow nothing is high, and with two bands all is low.
    latent = noise(2, 3, height, width)
    energies = FrequencyBands(2, kappa=1e-9, min_sigma=0).energies(latent)
    torch.testing.assert_close(energies[:, 0], latent.square().sum(dim=(1, 2, 3)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_bands", range(2, 7))
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_transfer_functions_sum_to_one(num_bands, height, width):
    transfer = FrequencyBands(num_bands).transfer(height, width, dtype=torch.float64)
    assert transfer.shape == (num_bands, height, width)
    assert transfer.min() >= 0 and transfer.max() <= 1
    torch.testing.assert_close(transfer.sum(dim=0), torch.ones(height, width, dtype=torch.float64), rtol=0, atol=1e-15)
    assert transfer[0, 0, 0] == 1  # a mean is all low


# Oracles


@pytest.mark.parametrize("num_bands", range(2, 7))
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_energies_equal_the_formula_on_scipys_cosine_transform(num_bands, height, width):
    bands = FrequencyBands(num_bands, kappa=1 / 50)
    latent = noise(2, 3, height, width)
    power = np.square(scipy.fft.dctn(latent.numpy(), axes=(2, 3), norm="ortho")).sum(axis=1)
    squared = (np.pi * np.arange(height) / height)[:, None] ** 2 + (np.pi * np.arange(width) / width)[None] ** 2
    finest = max(min(height, width) / 50, 0.5)
    low_passes = [np.exp(-((finest * 2**j) ** 2) * squared / 2) for j in range(num_bands - 1)]
    transfers = [low_passes[-1]]
    transfers += [low_passes[j - 1] - low_passes[j] for j in range(num_bands - 2, 0, -1)]
    transfers += [1 - low_passes[0]]
    expected = np.stack([(power * transfer**2).sum(axis=(1, 2)) for transfer in transfers], axis=1)
    np.testing.assert_allclose(bands.energies(latent).numpy(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("finest", "tolerance"), [(1.0, 5e-3), (1.5, 2e-5), (2.0, 2e-8), (3.0, 1e-11)])
@pytest.mark.parametrize(("num_bands", "height", "width"), [(2, 24, 24), (3, 31, 17), (4, 12, 48), (6, 20, 20)])
def test_agrees_with_a_spatial_blur(finest, tolerance, num_bands, height, width):
    # A sampled kernel's transfer function is the Gaussian's plus its aliases, exp(-s^2 pi^2 / 2) at the edge of the
    # band: 7e-3 at one pixel, 1.5e-5 at 1.5, 3e-9 at two. That is what the tolerances allow.
    bands = FrequencyBands(num_bands, kappa=finest / min(height, width), min_sigma=0)
    latent = noise(2, 3, height, width)
    expected = blurred_bands(latent, bands.sigmas(height, width))
    parts = bands.split(latent)
    error = (parts - expected).flatten(2).norm(dim=2) / latent.flatten(1).norm(dim=1)[:, None]
    assert error.max() < tolerance
    energy = expected.square().sum(dim=(2, 3, 4))
    difference = bands.indicator(latent) - energy / energy.sum(dim=1, keepdim=True)
    assert difference.abs().max() < max(tolerance * 0.04, 1e-11)  # 2e-4 at one pixel


# Gradients


@pytest.mark.parametrize("method", ["energies", "indicator", "split"])
@pytest.mark.parametrize("shape", [(2, 2, 5, 4), (1, 3, 2, 2), (2, 2, 6)])
def test_gradients(method, shape):
    latent = noise(*shape).requires_grad_()
    assert gradcheck(getattr(FrequencyBands(3), method), (latent,))


@pytest.mark.parametrize("method", ["energies", "indicator", "split"])
def test_what_inference_mode_cached_serves_training(method):
    bands = FrequencyBands(3)
    with torch.inference_mode():
        getattr(bands, method)(torch.randn(1, 2, 6, 10))
    latent = torch.randn(1, 2, 6, 10, requires_grad=True)
    getattr(bands, method)(latent).square().sum().backward()
    assert latent.grad.isfinite().all() and latent.grad.abs().sum() > 0


# Properties


@settings(max_examples=60, deadline=None)
@given(
    num_bands=st.integers(2, 6),
    channels=st.integers(1, 5),
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    kappa=st.floats(1e-4, 1),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]),
    seed=st.integers(0, 99),
)
def test_shares_are_shares(num_bands, channels, height, width, kappa, scale, seed):
    shares = FrequencyBands(num_bands, kappa).indicator(
        noise(2, channels, height, width, seed=seed, dtype=torch.float32) * scale
    )
    assert shares.shape == (2, num_bands) and shares.dtype == torch.float32
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(num_bands=st.integers(2, 6), height=st.integers(2, 30), width=st.integers(2, 30), kappa=st.floats(1e-4, 1))
def test_every_split_is_complete(num_bands, height, width, kappa):
    latent = noise(1, 2, height, width)
    parts = FrequencyBands(num_bands, kappa).split(latent)
    torch.testing.assert_close(parts.sum(dim=1), latent, rtol=0, atol=1e-12)


# Errors


@pytest.mark.parametrize("method", ["energies", "indicator", "split"])
@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (torch.zeros(8, 8), r"\(B, C, H, W\) or \(B, C, L\), got \(8, 8\)"),
        (torch.zeros(1, 4, 2, 8, 8), r"\(B, C, H, W\) or \(B, C, L\), got \(1, 4, 2, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.long), "floating point, got torch.int64"),
        (torch.zeros(1, 4, 1, 8), r"at least 2, got \(1, 8\)"),
        (torch.zeros(1, 4, 8, 1), r"at least 2, got \(8, 1\)"),
        (torch.zeros(1, 4, 1), r"at least 2, got \(1,\)"),
    ],
)
def test_latents_that_cannot_work(method, latent, message):
    with pytest.raises(FeraError, match=message):
        getattr(FrequencyBands(3), method)(latent)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_bands": 1},
        {"num_bands": 0},
        {"num_bands": 2.0},
        {"num_bands": True},
        {"kappa": 0},
        {"kappa": -0.1},
        {"kappa": 1.01},
        {"kappa": math.nan},
        {"min_sigma": -1},
        {"min_sigma": math.nan},
        {"min_sigma": math.inf},
    ],
)
def test_settings_out_of_range_are_named(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(FeraError, match=rf"{name} must .* got {value!r}"):
        FrequencyBands(**wrong)


def test_it_says_what_it_is():
    assert repr(FrequencyBands(4, 1 / 128)) == "FrequencyBands(num_bands=4, kappa=0.0078125, min_sigma=0.5)"
