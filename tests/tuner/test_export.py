"""torch.export and calls with fake tensors: they work, and leave the denoiser as it was."""

import pytest
import torch
from models import flux
from peft import inject_adapter_in_model
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from tuner_cases import CASES, config, fill, predict

import fera

cases = pytest.mark.parametrize("case", CASES, ids=repr)


def adapted(case):
    return fill(inject_adapter_in_model(config(), case.model())).eval()


def fake(inputs, mode):
    return {name: mode.from_tensor(value) for name, value in inputs.items()}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("ways", ["on the CPU", "on a GPU"])
@cases
def test_a_call_with_fake_tensors_before_and_after_real_ones(case, grad, ways, request):
    """As estimates of memory and time make it; each denoiser has caches of its own."""
    if ways == "on a GPU":
        request.getfixturevalue("as_on_a_gpu")
    inputs = case.inputs(2)
    expected = predict(adapted(case), inputs).detach()
    model, mode = adapted(case), FakeTensorMode(allow_non_fake_inputs=True)
    for _ in range(2):
        with mode, torch.set_grad_enabled(grad):
            output = predict(model, fake(inputs, mode))
        assert isinstance(output, FakeTensor) and output.shape == expected.shape
        with torch.no_grad():
            torch.testing.assert_close(predict(model, inputs), expected, rtol=1e-4, atol=1e-5)
    assert model.fera.gates is None and model.fera.shared == {}


@cases
def test_an_exported_denoiser_routes_as_the_denoiser_does(case):
    inputs, others = case.inputs(2), case.inputs(2, seed=3)
    with torch.no_grad():
        expected = [predict(adapted(case), one) for one in (inputs, others)]
        model = adapted(case)
        exported = torch.export.export(model, (), inputs | {"return_dict": False}).module()
        for one, right in zip((inputs, others), expected, strict=True):
            torch.testing.assert_close(exported(**one, return_dict=False)[0], right, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(predict(model, one), right, rtol=1e-4, atol=1e-5)
        assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_bands_keep_nothing_of_a_call_with_fake_tensors():
    latent, bands = torch.randn(2, 4, 8, 12), fera.FrequencyBands()
    expected = fera.FrequencyBands().indicator(latent)
    with FakeTensorMode() as mode:
        bands.indicator(mode.from_tensor(latent))
        bands.split(mode.from_tensor(latent))
    assert torch.equal(bands.indicator(latent), expected)
    with mode:
        bands.indicator(mode.from_tensor(latent))
    assert torch.equal(bands.split(latent), fera.FrequencyBands().split(latent))


def test_position_ids_that_are_fake_are_refused_and_not_kept():
    model = fill(inject_adapter_in_model(config(), flux.make_transformer())).eval()
    ids = torch.cartesian_prod(torch.tensor([0.0]), torch.arange(2.0), torch.arange(3.0))
    call = {
        "hidden_states": torch.randn(1, 6, 16),
        "encoder_hidden_states": torch.randn(1, 5, 64),
        "pooled_projections": torch.randn(1, 32),
        "timestep": torch.tensor([0.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(5, 3),
    }
    with torch.no_grad():
        expected = model(**call).sample
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode, pytest.raises(fera.FeraError, match="values of 'img_ids'"):
            model(**fake(call, mode))
        assert model.fera.gates is None
        assert torch.equal(model(**call).sample, expected)
