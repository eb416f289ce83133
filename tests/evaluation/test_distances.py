"""Distances of sets of pictures: cases with known answers, then what they must and must not depend on."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from fera.evaluation.wasserstein import sliced_wasserstein
from fera.features.distributions import diversity, frechet_distance, kernel_distance
from fera.features.pixels import PixelSet, resized


def noise_pictures(count, seed, *, mean=128.0, deviation=40.0, side=32):
    draws = np.random.default_rng(seed).normal(mean, deviation, (count, side, side, 3)).clip(0, 255)
    return PixelSet([Image.fromarray(pixels.astype(np.uint8)) for pixels in draws], (side, side))


def features(count, seed, shift=0.0, width=4):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + shift


def test_frechet_is_the_formula():
    real, other = features(60, 0), features(40, 1, shift=0.5) * 1.3
    mean = (real.mean(0) - other.mean(0)).square().sum()
    a, b = (np.cov(one.double().numpy(), rowvar=False) for one in (real, other))
    expected = float(mean) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(real, other) == pytest.approx(expected, rel=1e-4)


def test_frechet_of_shifted_features_is_the_squared_shift():
    real = features(50, 0)
    assert frechet_distance(real, real + 2.0) == pytest.approx(4 * 2.0**2, rel=1e-3)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-4)


def test_frechet_of_fewer_pictures_than_features_is_finite():
    assert math.isfinite(frechet_distance(features(5, 0, width=64), features(5, 1, width=64)))


def test_kernel_is_the_unbiased_formula():
    real, other = features(30, 0).double(), features(30, 1, shift=0.7).double()

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def off_diagonal(matrix):
        return (matrix.sum() - matrix.trace()) / (len(matrix) * (len(matrix) - 1))

    expected = off_diagonal(kernel(real, real)) + off_diagonal(kernel(other, other)) - 2 * kernel(real, other).mean()
    assert kernel_distance(real.float(), other.float()) == pytest.approx(float(expected), rel=1e-3)


def test_kernel_of_unequal_sets_repeats_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = kernel_distance(features(40, 0), features(25, 1), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert kernel_distance(features(40, 0), features(25, 1), seed=3) == first


def test_diversity_of_known_angles():
    axes = torch.eye(3)
    same, other = diversity(torch.stack([axes[0], axes[0], axes[1], -axes[1]]), ["a", "a", "b", "b"])
    assert same == pytest.approx((0 + 2) / 2)
    assert other == pytest.approx(1)
    assert diversity(axes, ["a", "b", "c"])[0] is None
    assert diversity(axes, ["a", "a", "a"])[1] is None


def test_a_set_is_no_distance_from_itself():
    pictures = noise_pictures(6, 0)
    assert sliced_wasserstein(pictures, pictures) == {"32": 0.0, "16": 0.0}


def test_a_constant_shift_moves_the_low_level_alone():
    real, brighter = noise_pictures(20, 0, deviation=10), noise_pictures(20, 0, mean=160, deviation=10)
    distances = sliced_wasserstein(real, brighter)
    assert distances["32"] < 0.05
    assert distances["16"] > 1


def test_shift_of_the_low_level_has_a_known_size():
    # Standardized patches shifted by s in every entry: projections shift by s * sum(u), of mean size s * sqrt(2 / pi)
    # times the norm of (1, ..., 1) against a random direction.
    real, brighter = (
        noise_pictures(20, 0, deviation=10, side=16),
        noise_pictures(20, 0, mean=148, deviation=10, side=16),
    )
    assert sliced_wasserstein(real, brighter)["16"] == pytest.approx(2.0 * math.sqrt(2 / math.pi), rel=0.15)


def test_other_contrast_counts_at_the_fine_level():
    real = noise_pictures(20, 0)
    assert sliced_wasserstein(real, noise_pictures(20, 1))["32"] < 0.1
    assert sliced_wasserstein(real, noise_pictures(20, 1, deviation=10))["32"] > 0.3


def test_chunks_do_not_matter(monkeypatch):
    real, other = noise_pictures(7, 0), noise_pictures(5, 1)
    whole = sliced_wasserstein(real, other)
    monkeypatch.setattr("fera.features.pixels._CHUNK_PIXELS", 2 * 32 * 32)
    assert [len(chunk) for chunk in real] == [2, 2, 2, 1]
    assert sliced_wasserstein(real, other) == pytest.approx(whole, rel=1e-5)


def test_pictures_are_covered_and_cropped_as_in_training():
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 10, 20))  # falls off when the middle square is taken
    (chunk,) = PixelSet([image], (20, 20))
    assert chunk.shape == (1, 3, 20, 20)
    assert torch.equal(chunk, torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 20, 20))
    assert resized(chunk, 8).shape == (1, 3, 8, 8)
    assert resized(chunk, 8).abs().max() <= 1
