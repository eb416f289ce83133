"""The consistency loss: the formula written plainly in float64, its zeros, its gradients, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from fera import FeraError, FrequencyBands, frequency_energy_consistency


def predictions(batch=2, channels=3, height=8, width=10, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(3)
    )


def plain_formula(base, adapted, target, bands):
    """The loss sample by sample and band by band, with images for bands."""
    total = 0.0
    for n in range(len(base)):
        correction, residual = adapted[n] - base[n], adapted[n] - target[n]
        corrections, residuals = bands.split(correction[None])[0], bands.split(residual[None])[0]
        energies = [float((part**2).sum()) for part in residuals]
        for k in range(bands.num_bands):
            weight = energies[k] / sum(energies)
            share = corrections[k].norm() / correction.norm()
            wanted = residuals[k].norm() / residual.norm()
            total += weight * float(share - wanted) ** 2
    return total / len(base)


@pytest.mark.parametrize("num_bands", range(2, 7))
@pytest.mark.parametrize(("height", "width"), [(2, 2), (5, 7), (8, 32), (16, 16)])
def test_equals_the_formula(num_bands, height, width):
    bands = FrequencyBands(num_bands)
    inputs = predictions(3, 2, height, width)
    loss = frequency_energy_consistency(*inputs, bands)
    assert loss.ndim == 0 and loss.dtype == torch.float64
    assert loss > 0
    assert float(loss) == pytest.approx(plain_formula(*inputs, bands), rel=1e-11)


def test_equals_the_formula_in_one_dimension():
    bands = FrequencyBands(3)
    inputs = tuple(value.flatten(2) for value in predictions())
    assert float(frequency_energy_consistency(*inputs, bands)) == pytest.approx(
        plain_formula(*inputs, bands), rel=1e-11
    )


def test_a_correction_with_the_spectrum_of_the_error_costs_nothing():
    base, adapted, _ = predictions()
    bands = FrequencyBands(3)
    # adapted - target = -2 (adapted - base): what is missing looks like what was added.
    target = adapted + 2 * (adapted - base)
    assert float(frequency_energy_consistency(base, adapted, target, bands)) < 1e-25


def test_a_correction_in_the_wrong_band_costs_almost_all():
    bands = FrequencyBands(2, kappa=1 / 8)
    base = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    adapted = torch.ones_like(base)  # the correction is all low
    board = torch.ones(16, 16, dtype=torch.float64)
    board[::2, ::2] = board[1::2, 1::2] = -1
    target = adapted - board  # the error is all high
    assert float(frequency_energy_consistency(base, adapted, target, bands)) > 0.99


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e20])
def test_the_scale_does_not_matter(scale):
    inputs = predictions(dtype=torch.float32)
    bands = FrequencyBands(3)
    loss = frequency_energy_consistency(*inputs, bands)
    scaled = frequency_energy_consistency(*(scale * value for value in inputs), bands)
    torch.testing.assert_close(scaled, loss, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["no correction", "no error", "neither", "correction of one band"])
def test_finite_with_a_finite_gradient_at_its_corners(case, dtype):
    base, adapted, target = predictions(dtype=dtype)
    adapted = {
        "no correction": base,
        "no error": target,
        "neither": base,
        "correction of one band": base + 1,
    }[case].clone()
    target = base if case == "neither" else target
    adapted.requires_grad_()
    loss = frequency_energy_consistency(base, adapted, target, FrequencyBands(3))
    loss.backward()
    assert loss.isfinite() and 0 <= loss <= 1
    assert adapted.grad.isfinite().all()


def test_without_a_correction_only_the_error_counts():
    base, _, target = predictions()
    bands = FrequencyBands(3)
    error = bands.split(base - target)
    energies = error.square().sum(dim=(2, 3, 4))
    weights = energies / energies.sum(dim=1, keepdim=True)
    ratios = energies / (base - target).square().sum(dim=(1, 2, 3))[:, None]
    loss = frequency_energy_consistency(base, base.clone(), target, bands)
    assert float(loss) == pytest.approx(float((weights * ratios).sum(dim=1).mean()), rel=1e-11)


def test_gradients():
    base, adapted, target = predictions(2, 2, 5, 4)
    bands = FrequencyBands(3)
    assert gradcheck(lambda value: frequency_energy_consistency(base, value, target, bands), adapted.requires_grad_())


def test_base_and_target_are_constants():
    base, adapted, target = (value.requires_grad_() for value in predictions())
    frequency_energy_consistency(base, adapted, target, FrequencyBands(3)).backward()
    assert base.grad is None and target.grad is None
    assert adapted.grad.abs().sum() > 0


def test_samples_are_averaged():
    inputs, bands = predictions(3), FrequencyBands(3)
    apart = [float(frequency_energy_consistency(*(v[n : n + 1] for v in inputs), bands)) for n in range(3)]
    assert float(frequency_energy_consistency(*inputs, bands)) == pytest.approx(sum(apart) / 3, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    inputs, bands = predictions(dtype=dtype), FrequencyBands(3)
    loss = frequency_energy_consistency(*inputs, bands)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, frequency_energy_consistency(*(value.float() for value in inputs), bands))


def test_float32_under_autocast():
    inputs, bands = predictions(dtype=torch.float32), FrequencyBands(3)
    plain = frequency_energy_consistency(*inputs, bands)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(frequency_energy_consistency(*inputs, bands), plain)


@settings(max_examples=40, deadline=None)
@given(num_bands=st.integers(2, 6), height=st.integers(2, 20), width=st.integers(2, 20), seed=st.integers(0, 99))
def test_it_lies_between_zero_and_one(num_bands, height, width, seed):
    loss = frequency_energy_consistency(*predictions(2, 2, height, width, seed), FrequencyBands(num_bands))
    assert 0 <= loss <= 1


def test_shapes_must_match():
    base, adapted, target = predictions()
    with pytest.raises(FeraError, match=r"one shape, got \(2, 3, 8, 10\), \(2, 3, 8, 10\) and \(1, 3, 8, 10\)"):
        frequency_energy_consistency(base, adapted, target[:1], FrequencyBands(3))
    for shape in [(8, 10), (2, 3, 1, 8, 10), (8,)]:
        with pytest.raises(FeraError, match=r"\(B, C, H, W\)"):
            frequency_energy_consistency(*(torch.zeros(shape) for _ in range(3)), FrequencyBands(3))
