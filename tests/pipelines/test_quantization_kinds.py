"""Each way to hold linear layers in few bits: what it computes, learns through, takes, and never holds."""

import weakref
from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, get_peft_model
from tiny import make_unet
from torch.overrides import TorchFunctionMode
from tuner_cases import UNET, adapter_gradients, config, fill, predict, step

import fera
from benchmarks.quantized import table, trains_on_cpu
from fera import FeraError
from fera.config.quantization import Quantization
from fera.pipelines.frozen_linear import Fp8Linear, fp8_of
from fera.pipelines.memory import held
from fera.pipelines.quantization import quantize
from fera.pipelines.quantization_kinds import KINDS, check_quantization

CPU = torch.device("cpu")
# What a CPU computes with. Those of bitsandbytes have tests of their own (tests/training/test_quantized.py).
TRIED = [name for name, kind in KINDS.items() if not kind.needs_gpu and kind.package != "bitsandbytes"]
# How far predictions may be from those of the exact base, relative; a few bits differ by a few parts in a hundred.
ERRORS = {"8": 0.03, "4": 0.1}  # by the end of the name


@pytest.fixture(params=TRIED)
def kind(request):
    if KINDS[request.param].module:
        pytest.importorskip(KINDS[request.param].module)
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    make_unet().save_pretrained(folder)
    return folder


def quantized(kind, dtype=torch.float32):
    model = make_unet()
    quantize(model, kind, CPU, dtype)
    return model


def dense(model):
    """An exact twin with the weights that the layers of a quantized model have in effect."""
    twin = make_unet()
    for name, layer in twin.named_modules():
        if isinstance(layer, torch.nn.Linear):
            held = model.get_submodule(name)
            bias = 0 if held.bias is None else held.bias
            with torch.no_grad():
                layer.weight.copy_((held(torch.eye(layer.in_features)) - bias).T)
    return twin


def kept(tensor):
    """Bytes of a tensor, and of those that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    return sum(kept(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without")
def test_predicts_and_learns_as_its_dense_twin(kind):
    model, exact = quantized(kind), make_unet()
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
    twin, inputs = dense(model), UNET.inputs(2)
    with torch.no_grad():
        got, expected = predict(model, inputs), predict(exact, inputs)
        assert 0 < (got - expected).norm() / expected.norm() < ERRORS[kind[-1]]
        torch.testing.assert_close(got, predict(twin, inputs), rtol=1e-4, atol=1e-5)
    found = {}
    for base in (model, twin):
        adapted = fill(get_peft_model(base, config())).train()
        step(adapted, inputs)
        found[base] = adapter_gradients(adapted)
    assert found[twin].keys() == found[model].keys()
    for name, gradient in found[twin].items():
        torch.testing.assert_close(found[model][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without")
def test_one_expert_is_the_lora_of_peft_on_the_same_base(kind):
    inputs = UNET.inputs(2)
    plain = get_peft_model(quantized(kind), LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"]))
    ours = get_peft_model(quantized(kind), config(r=2, num_experts=1, lora_alpha=2, target_modules=["to_q", "to_v"]))
    values = torch.Generator().manual_seed(1)
    theirs = dict(plain.named_parameters())
    for name, parameter in ours.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=values) * 0.1
            theirs[name].data = parameter.data.clone()
    with torch.no_grad():
        torch.testing.assert_close(predict(ours, inputs), predict(plain, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_takes_what_is_said(kind, dtype):
    model = make_unet().to(dtype)
    expected = held(model, dtype, kind)
    quantize(model, kind, CPU)
    assert expected.device_bytes == sum(map(kept, model.parameters()))


def test_groups_of_quanto_are_counted_in_wide_layers():
    pytest.importorskip("optimum.quanto")
    model = FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=0, attention_head_dim=64, num_attention_heads=4,
        joint_attention_dim=320, pooled_projection_dim=48, axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    expected = held(model, torch.float32, "quanto-int4")
    quantize(model, "quanto-int4", CPU)
    assert expected.device_bytes == sum(map(kept, model.parameters()))


def test_leaves_no_dense_weight_for_the_backward_pass(kind):
    layer = next(part for part in quantized(kind).modules() if isinstance(part, torch.nn.Linear))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda held: held):
        layer(torch.randn(3, layer.in_features, requires_grad=True))
    full = layer.in_features * layer.out_features * torch.float32.itemsize
    assert not any(kept(tensor) >= full for tensor in saved)


class _Watch(TorchFunctionMode):
    """The most matrices of floating point numbers that are there at a time, of those that PyTorch's functions made.

    Args:
        known: where the storages lie that are not counted.
    """

    def __init__(self, known):
        super().__init__()
        self.most, self._known, self._made = 0, known, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        is_dense = isinstance(found, torch.Tensor) and not hasattr(found, "__tensor_flatten__")
        if is_dense and not found.is_meta and found.is_floating_point() and found.ndim == 2 and found.shape[1] > 1:
            if found.itemsize > 1 and found.data_ptr() not in self._known:
                self._made.append(weakref.ref(found))
        self._made = [made for made in self._made if made() is not None]
        self.most = max(self.most, len(self._made))
        return found


def test_is_never_held_at_full_precision(kind, tmp_path):
    """From files to few bits weight by weight: a few matrices are dense at a time, of all that there are."""
    make_unet().to(torch.bfloat16).save_pretrained(tmp_path)
    model = type(make_unet()).from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    count = sum(isinstance(part, torch.nn.Linear) for part in model.modules())
    expected = make_unet().to(torch.bfloat16)
    quantize(expected, kind, CPU, torch.bfloat16)
    with _Watch({parameter.data_ptr() for parameter in model.parameters()}) as watch:
        quantize(model, kind, CPU, torch.bfloat16)
    assert 0 < watch.most < 10 < count
    with torch.no_grad():
        inputs = {
            key: value.bfloat16() if value.is_floating_point() else value for key, value in UNET.inputs(1).items()
        }
        assert torch.equal(predict(model, inputs), predict(expected, inputs))


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without")
def test_an_adapter_knows_its_base_however_it_is_held(kind, tmp_path):
    """The fingerprint is that of the exact base, so another base is told from it although no number is left."""
    fill(get_peft_model(quantized(kind), config())).save_pretrained(tmp_path)
    exact, other = make_unet(), make_unet()
    fera.load_adapter(exact, tmp_path)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1.5)
    quantize(other, kind, CPU)
    with pytest.raises(FeraError, match="trained on another base"):
        fera.load_adapter(other, tmp_path)


def test_floats_of_eight_bits_are_within_half_a_step():
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight[3] = 0
    bits, scale = fp8_of(weight.float())
    assert bits.dtype == torch.uint8 and scale.shape == (16,)
    held = bits.view(torch.float8_e4m3fn).double() * scale.double()[:, None]
    # Three bits behind the point, and steps of 2**-9 of the scale below the least normal number.
    step = torch.maximum(weight.abs() / 16, scale.double()[:, None] * 2**-10)
    assert ((held - weight).abs() <= step * 1.001).all() and not held[3].any()


def test_casts_leave_the_bits():
    model = quantized("fp8")
    layer = next(part for part in model.modules() if isinstance(part, Fp8Linear))
    bits = layer.weight.clone()
    with pytest.raises(ValueError, match="Casting a quantized model"):
        model.to(torch.bfloat16)
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.uint8 and torch.equal(layer.weight, bits)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, layer.in_features)).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without")
def test_merging_is_right_or_refused(kind):
    """torchao's layers are made dense, added to and rounded again; others are left as they are."""
    model, inputs = quantized(kind), UNET.inputs(2)
    fill(get_peft_model(model, config(num_experts=1)))
    if not kind.startswith("torchao"):
        with torch.no_grad():
            before = predict(model, inputs)
            with pytest.raises(FeraError, match="cannot merge into .*; nothing was merged"):
                fera.merge(model, "uniform")
            assert torch.equal(predict(model, inputs), before)
        return
    expected = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer"):
            up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
            expected[name] = layer.base_layer.weight.dequantize() + up @ down * layer.scaling["default"]
    fera.merge(model, "uniform")
    for name, weight in expected.items():
        merged = model.get_submodule(name).weight
        assert hasattr(merged, "qdata")
        assert (merged.dequantize() - weight).norm() < 0.03 * weight.norm(), name


def test_the_page_says_what_trains_on_a_cpu(kind):
    assert trains_on_cpu(kind) == "trains" and not KINDS[kind].needs_gpu
    assert table() in (Path(__file__).parents[2] / "docs" / "memory.md").read_text(encoding="utf-8")


def test_each_name_of_the_configuration_is_known():
    assert ["none", *KINDS] == [*get_args(Quantization)]


def test_torchao_int4_needs_a_gpu_is_refused_without():
    for name in KINDS:
        if KINDS[name].needs_gpu and KINDS[name].module != "torchao":
            pytest.fail("what it says without its package is tested for torchao alone")
    pytest.importorskip("torchao")
    with pytest.raises(FeraError, match=r"'torchao-int4' computes on a CUDA device alone.*take one of 8bit"):
        check_quantization("torchao-int4", CPU)
