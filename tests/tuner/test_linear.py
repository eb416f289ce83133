"""The short cuts of the routed layer of a plain nn.Linear: taken where they pay, and never another result."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn
from tuner_cases import UNET, adapter_gradients, config, fill, predict, step

from fera import register_denoiser
from fera.tuner.fast import linear
from fera.tuner.layer import RoutedLora

EXPERTS, RANK, SCALE = 3, 2, 2.0


class OneLayer(nn.Module):
    def __init__(self, width, out, bias):
        super().__init__()
        self.to_q = nn.Linear(width, out, bias=bias)

    def forward(self, sample):
        return self.to_q(sample)


@pytest.fixture(autouse=True)
def known(only_own_denoisers):
    register_denoiser(OneLayer, latent="sample")


def make(width=24, out=40, bias=True, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    model = inject_adapter_in_model(
        config(target_modules=["to_q"], num_experts=EXPERTS, r=RANK, lora_alpha=RANK * SCALE, **settings),
        OneLayer(width, out, bias).to(dtype),
    )
    return fill(model.to(dtype)).eval()


def formula(layer, x, gate):
    """Sample by sample in float64."""
    a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    result = layer.base_layer.weight.double()
    outputs = []
    for sample, row in zip(x.double(), gate.double(), strict=True):
        weight = result + SCALE * b @ torch.diag(row.repeat_interleave(RANK)) @ a
        bias = layer.base_layer.bias
        outputs.append(sample @ weight.T + (0 if bias is None else bias.double()))
    return torch.stack(outputs)


@pytest.fixture
def ways(monkeypatch):
    """Which way each forward went, and over how many weights."""
    taken = []
    merged = linear._merged

    def note_merged(*args):
        taken.append(("merged", len(args[-1])))
        return merged(*args)

    def noting(add):
        def note_added(*args):
            taken.append(("added", None))
            return add(*args)

        return note_added

    monkeypatch.setattr(linear, "_merged", note_merged)
    for name in ("routed_linear", "routed_rows"):
        monkeypatch.setattr(linear, name, noting(getattr(linear, name)))
    return taken


def gates(count, equal, seed=1):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(1 if equal else count, EXPERTS, generator=generator).softmax(dim=1)
    return rows.expand(count, -1).contiguous()


def inputs(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "equal", "way"),
    [
        ((4, 200, 24), True, ("merged", 1)),
        ((4, 200, 24), False, ("merged", 4)),
        ((4, 5, 40, 24), False, ("merged", 4)),
        ((6, 24), True, ("merged", 1)),
    ],
)
def test_a_merged_weight_gives_the_formula(ways, shape, equal, way, bias):
    model, gate = make(bias=bias), gates(shape[0], equal)
    x = inputs(*shape)
    with torch.no_grad(), model.fera.using({"default": gate}):
        found = model.to_q(x)
    assert ways == [way]
    torch.testing.assert_close(found.double(), formula(model.to_q, x, gate), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(300, 2, 384), (300, 384)])
def test_a_weight_that_would_serve_few_tokens_is_not_formed(ways, shape):
    model, gate = make(384, 320), gates(shape[0], equal=False)
    x = inputs(*shape)
    with torch.no_grad(), model.fera.using({"default": gate}):
        found = model.to_q(x)
    assert ways == [("added", None)]
    torch.testing.assert_close(found.double(), formula(model.to_q, x, gate), rtol=1e-4, atol=1e-4)


def test_frames_folded_into_the_batch_are_merged_by_their_gates(ways):
    model, gate = make(), gates(2, equal=False)
    x = inputs(6, 200, 24)
    with torch.no_grad(), model.fera.using({"default": gate}):
        found = model.to_q(x)
    expected = formula(model.to_q, x, gate.repeat_interleave(3, dim=0))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert ways == [("merged", 6)]


# With more tokens than the layer is wide, and with fewer: another factor takes the rank weights.
@pytest.mark.parametrize("shape", [(4, 200), (4, 5, 40), (4, 7), (6,)])
def test_with_gradients_nothing_is_merged_and_they_are_those_of_the_formula(ways, shape):
    model, x = make(dtype=torch.float64), inputs(*shape, 24, dtype=torch.float64).requires_grad_()
    gate = gates(shape[0], equal=False).double().requires_grad_()
    weights = [model.to_q.lora_A["default"].weight, model.to_q.lora_B["default"].weight, x, gate]
    slope = inputs(*shape, 40, dtype=torch.float64)
    with model.fera.using({"default": gate}):
        found = torch.autograd.grad((model.to_q(x) * slope).sum(), weights)
    expected = torch.autograd.grad((formula(model.to_q, x, gate) * slope).sum(), weights)
    assert ways == [("added", None)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_training_passes_the_general_way_gives_the_same_gradients(monkeypatch):
    short = fill(inject_adapter_in_model(config(), UNET.model())).train()
    general = copy.deepcopy(short)
    step(short, UNET.inputs(3))
    monkeypatch.setattr(linear.RoutedLinear, "forward", LoraLinear.forward)
    step(general, UNET.inputs(3))
    expected = adapter_gradients(general)
    for name, gradient in adapter_gradients(short).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("equal", [True, False])
def test_a_merged_weight_of_half_precision_rounds_no_worse_than_peft(ways, dtype, equal):
    model, gate, x = make(dtype=dtype), gates(4, equal), inputs(4, 200, 24, dtype=dtype)
    exact = formula(model.to_q, x, gate)
    with torch.no_grad(), model.fera.using({"default": gate}):
        mine, theirs = model.to_q(x), LoraLinear.forward(model.to_q, x)
    assert [way for way, _ in ways] == ["merged"]
    assert (mine.double() - exact).norm() <= 1.05 * (theirs.double() - exact).norm()


def _disable(model):
    model.to_q.enable_adapters(False)


def _watch(model):
    model.to_q.base_layer.register_forward_hook(lambda *call: None)


def _replace_call(model):
    model.to_q.lora_B["default"].forward = nn.Linear.forward.__get__(model.to_q.lora_B["default"])


def _add_plain(model):
    inject_adapter_in_model(LoraConfig(r=1, target_modules=["to_q"]), model, "plain")
    model.to_q.set_adapter(["default", "plain"])


class Quantized(torch.Tensor):
    """As torchao's: the weight of an ordinary nn.Linear."""


def _quantize(model):
    base = model.to_q.base_layer
    base.weight = nn.Parameter(base.weight.detach().as_subclass(Quantized), requires_grad=False)


def _drop_out(model):
    model.to_q.lora_dropout["default"] = nn.Dropout(0.5)
    model.train()


def _widen_adapter(model):
    model.to_q.lora_A.double()
    model.to_q.lora_B.double()


@pytest.mark.parametrize("change", [_disable, _watch, _replace_call, _add_plain, _quantize, _drop_out, _widen_adapter])
def test_what_a_short_cut_does_not_know_is_left_to_peft(ways, change):
    model, gate = make(), gates(4, equal=True)
    change(model)
    x = inputs(4, 200, 24)
    with torch.no_grad(), model.fera.using({"default": gate}):
        torch.manual_seed(3)
        found = model.to_q(x)
        torch.manual_seed(3)
        expected = LoraLinear.forward(model.to_q, x)
    assert torch.equal(found, expected)
    assert not ways


def _mixed(base):
    """A base of this dtype with an adapter in float32, as mixed precision trains it; its parts and random arguments."""
    model, gate = make(dtype=base), gates(4, equal=False).requires_grad_()
    layer = model.to_q
    layer.lora_A.float()
    layer.lora_B.float()
    trained = [layer.lora_A["default"].weight.requires_grad_(), layer.lora_B["default"].weight.requires_grad_(), gate]
    return model, gate, trained, inputs(4, 200, 40)


def _in_mixed_precision(model, gate, trained, x, slope):
    """Output and gradients under autocast."""
    with torch.autocast("cpu", torch.bfloat16), model.fera.using({"default": gate}):
        output = model.to_q(x)
    return [output, *torch.autograd.grad(output, [x, *trained], slope.to(output.dtype))]


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_mixed_precision_rounds_no_worse_than_peft(ways, monkeypatch, base, given):
    model, gate, trained, slope = _mixed(base)
    x = inputs(4, 200, 24, dtype=given).requires_grad_()
    found = _in_mixed_precision(model, gate, trained, x, slope)
    assert ways == [("added", None)]
    assert [one.dtype for one in found] == [torch.bfloat16, given, *[torch.float32] * 3]
    exact = formula(model.to_q, x, gate)
    exact = [exact, *torch.autograd.grad(exact, [x, *trained], slope.double())]
    monkeypatch.setattr(linear.RoutedLinear, "forward", LoraLinear.forward)
    for mine, theirs, right in zip(found, _in_mixed_precision(model, gate, trained, x, slope), exact, strict=True):
        error = (mine.double() - right).norm()
        assert error <= 0.01 * right.norm()
        assert error <= 1.1 * (theirs.double() - right).norm()


def test_double_precision_under_autocast_is_left_to_peft(ways):
    model = make(dtype=torch.float64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), model.fera.using({"default": gates(4, equal=True)}):
        assert model.to_q(inputs(4, 200, 24, dtype=torch.float64)).dtype == torch.float64
    assert not ways


def test_guidance_sees_one_latent_and_one_weight(ways, monkeypatch):
    monkeypatch.setattr(linear, "_calls_cost", lambda x: False)
    model = fill(inject_adapter_in_model(config(), UNET.model())).eval()
    one = UNET.inputs(1, size=16)
    both = {name: torch.cat([value, value]) if value.ndim else value for name, value in one.items()}
    with torch.no_grad():
        found = predict(model, both)
        assert {way for way in ways} == {("merged", 1)}
        torch.testing.assert_close(found[:1], predict(model, one), rtol=1e-4, atol=1e-5)


def test_a_layer_that_peft_made_first_is_routed_the_general_way(ways):
    model = inject_adapter_in_model(LoraConfig(r=1, target_modules=["to_q"]), OneLayer(24, 40, True), "plain")
    model = fill(inject_adapter_in_model(config(target_modules=["to_q"], num_experts=EXPERTS, lora_alpha=4.0), model))
    assert type(model.to_q) is LoraLinear
    assert isinstance(model.to_q.lora_variant["default"], RoutedLora)
    model.to_q.set_adapter("default")
    x, gate = inputs(4, 200, 24), gates(4, equal=True)
    with torch.no_grad(), model.fera.using({"default": gate}):
        torch.testing.assert_close(model.to_q(x).double(), formula(model.to_q, x, gate), rtol=1e-5, atol=1e-5)
    assert not ways


class Named(OneLayer):
    """Names its layer's input, as AnimateDiff's blocks do, and hands it none of the frames of an empty part."""

    def forward(self, sample):
        empty = self.to_q(sample[:0])
        return self.to_q(input=sample), empty


def test_an_input_may_be_named_and_may_be_empty():
    register_denoiser(Named, latent="sample")
    latent = torch.randn(2, 3, 8, 24)
    model = make()
    expected = model(latent)
    model.__class__ = Named
    named, empty = model(latent)
    assert torch.equal(named, expected) and empty.shape == (0, 3, 8, 40)
