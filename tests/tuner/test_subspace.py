"""Experts inside of principal subspaces: the subspaces by an oracle, and that everything else takes them for LoRAs."""

import copy

import pytest
import torch
from adapter_cases import denoiser_of, make_pipeline
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file
from tiny import make_unet
from torch import nn
from tuner_cases import ATTENTION, SD3, UNET, predict

import fera
from fera import FeraConfig, FeraError
from fera.adapters.file import open_adapter
from fera.adapters.inspection import describe
from fera.export import merge
from fera.export.static import static_lora
from fera.method.subspace import principal_subspace, rank_for
from fera.tuner.fast.linear import RoutedLinear
from fera.tuner.fingerprint import fingerprint
from fera.tuner.model import gate_of
from fera.tuner.subspace import describe_subspaces, subspace_factors

CERSA = {"peft_type": "CERSA", "energy": 0.9}
WIDE = [*ATTENTION, "conv1", "conv2", "conv_shortcut"]


def confined(model=None, adapter="default", seed=0, targets=ATTENTION, energy=0.9, **settings):
    """A denoiser with confined experts whose every weight counts."""
    model = make_unet() if model is None else model
    torch.manual_seed(1)
    expert = {"peft_type": "CERSA", "energy": energy}
    inject_adapter_in_model(FeraConfig(expert=expert, target_modules=targets, **settings), model, adapter)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if f".{adapter}." in name and ".lora_" in name or f"router.{adapter}" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def layers_of(model, adapter="default"):
    return {n: m for n, m in model.named_modules() if isinstance(m, LoraLayer) and adapter in m.lora_A}


def as_lora(model, adapter="default"):
    """The same adapter as free LoRA experts."""
    other = make_unet()
    inject_adapter_in_model(FeraConfig(target_modules=ATTENTION), other, adapter)
    own, theirs = layers_of(model, adapter), layers_of(other, adapter)
    with torch.no_grad():
        for name, layer in theirs.items():
            layer.lora_A[adapter].weight.copy_(own[name].lora_A[adapter].weight)
            layer.lora_B[adapter].weight.copy_(own[name].lora_B[adapter].weight)
        gate_of(other).router[adapter].load_state_dict(gate_of(model).router[adapter].state_dict())
    return other


@pytest.mark.parametrize(
    ("values", "energy", "rank"),
    [
        ([3.0, 4.0][::-1], 0.5, 1),  # 16 of 25
        ([4.0, 3.0], 0.64, 1),
        ([4.0, 3.0], 0.65, 2),
        ([2.0, 1.0, 1.0, 0.0], 5 / 6, 2),
        ([2.0, 1.0, 1.0, 0.0], 1.0, 3),
        ([1.0] * 10, 0.95, 10),
        ([0.0, 0.0], 0.9, 1),
    ],
)
def test_ranks_by_hand(values, energy, rank):
    assert rank_for(torch.tensor(values), energy) == rank


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 1.0), st.integers(0, 99))
def test_a_subspace_holds_its_share_and_no_direction_more(rows, columns, energy, seed):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left, values, right = principal_subspace(weight, energy)
    matrix = weight.double()
    total = matrix.square().sum()
    kept = (left * values) @ right
    # By eigenvalues, which is another way to them: of W W^T the largest.
    eigenvalues = torch.linalg.eigvalsh(matrix @ matrix.T).flip(0)[: len(values)].clamp_min(0)
    torch.testing.assert_close(values.square(), eigenvalues, rtol=1e-6, atol=1e-9 * float(total))
    torch.testing.assert_close(left.T @ left, torch.eye(len(values), dtype=torch.float64))
    torch.testing.assert_close(right @ right.T, torch.eye(len(values), dtype=torch.float64))
    assert float(kept.square().sum()) >= (energy - 1e-9) * float(total)
    if len(values) > 1:
        assert float(values[:-1].square().sum()) < (energy + 1e-9) * float(total)
    # The best of its rank, and a share of its energy: what is missing is what is not kept.
    assert float((matrix - kept).square().sum()) == pytest.approx(float(total - values.square().sum()), abs=1e-8)


def test_directions_have_the_sign_that_they_always_have():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    one, other = principal_subspace(weight, 1.0), principal_subspace(weight[torch.arange(5, -1, -1)], 1.0)
    torch.testing.assert_close(other.right, one.right)
    assert all(float(column[column.abs().argmax()]) > 0 for column in one.left.T)


@pytest.mark.parametrize("case", [UNET, SD3], ids=repr)
def test_a_fresh_one_is_the_base_bit_for_bit(case):
    model, inputs = case.model(), case.inputs(2)
    base = predict(model, inputs)
    inject_adapter_in_model(FeraConfig(expert=CERSA), model)
    assert torch.equal(predict(model, inputs), base)
    assert torch.equal(model.eval()(**inputs)[0].detach(), base)


@pytest.mark.parametrize("targets", [ATTENTION, WIDE], ids=["attention", "wide"])
def test_updates_lie_inside_of_the_subspace(targets):
    """Against an SVD of its own in float64: projected into the subspace, an update stays what it is."""
    model = confined(targets=targets)
    kinds = set()
    for layer in layers_of(model).values():
        base, down, up = layer.get_base_layer(), layer.lora_A["default"], layer.lora_B["default"]
        kinds.add(type(base))
        left, values, right = torch.linalg.svd(base.weight.detach().flatten(1).double(), full_matrices=False)
        share = values.square().cumsum(0) / values.square().sum()
        rank = int((share < 0.9).sum()) + 1
        assert down.coordinates.shape == (12, rank) and up.coordinates.shape == (rank, 12)
        update = up.weight.detach().flatten(1).double() @ down.weight.detach().flatten(1).double()
        assert update.abs().max() > 0
        left, right = left[:, :rank], right[:rank]
        inside = left @ (left.T @ update @ right.T) @ right
        torch.testing.assert_close(inside, update, rtol=1e-5, atol=1e-6)
    assert kinds == ({nn.Linear, nn.Conv2d} if targets is WIDE else {nn.Linear})


def test_it_computes_what_a_lora_of_its_matrices_computes():
    """In training, through the short cut and without it, and where the weight is formed."""
    model, inputs = confined(), UNET.inputs(3)
    other = as_lora(model)
    for mode in ("train", "eval"):
        for one in (model, other):
            getattr(one, mode)()
        torch.testing.assert_close(model(**inputs)[0], other(**inputs)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict(model, inputs), predict(other, inputs), rtol=1e-4, atol=1e-5)
    assert all(isinstance(layer, RoutedLinear) and layer._plain() for layer in layers_of(model).values())


def test_gradients_of_coordinates_are_those_of_the_matrices():
    model, inputs = confined(), UNET.inputs(2)
    other = as_lora(model)
    for one in (model, other):
        one.train()
        one(**inputs)[0].square().sum().backward()
    free = layers_of(other)
    for name, layer in layers_of(model).items():
        down, up = layer.lora_A["default"], layer.lora_B["default"]
        of_a, of_b = (part["default"].weight.grad.double() for part in (free[name].lora_A, free[name].lora_B))
        scale = float(max(of_a.abs().max(), of_b.abs().max()))
        expected = of_a @ down.frame.double().T, up.frame.double().T @ of_b
        for found, wanted in zip((down.coordinates.grad, up.coordinates.grad), expected, strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-4 * scale)
        assert layer.get_base_layer().weight.grad is None


def test_what_trains_is_small():
    model = get_peft_model(make_unet(), FeraConfig(expert=CERSA, r=2, target_modules=ATTENTION))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(".coordinates" in name or ".router." in name for name in trained)
    count = sum(f.coordinates.numel() for _, f in subspace_factors(model))
    free = get_peft_model(make_unet(), FeraConfig(r=2, target_modules=ATTENTION))
    assert count < sum(w.numel() for n, w in free.named_parameters() if w.requires_grad and ".lora_" in n)
    words = describe_subspaces(model)
    assert words is not None and f"of each of {len(layers_of(model))} weights" in words
    assert describe_subspaces(free) is None


def test_it_is_saved_as_a_lora_and_loads_anywhere(tmp_path):
    pipe = make_pipeline("sd")
    model, inputs = confined(denoiser_of(pipe)), UNET.inputs(2)
    expected = predict(model, inputs)
    fera.save_adapter(pipe, tmp_path / "adapter")
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not [key for key in held if "coordinates" in key or "frame" in key]
    assert all(tensor.shape[0] == 12 for key, tensor in held.items() if "experts_A" in key)
    other = make_pipeline("sd")
    fera.load_adapter(other, tmp_path / "adapter")
    torch.testing.assert_close(predict(denoiser_of(other), inputs), expected, rtol=1e-4, atol=1e-5)
    # To draw with it nothing is taken apart: it is LoRA layers.
    assert not list(subspace_factors(denoiser_of(other)))
    settings = describe(tmp_path / "adapter")["settings"]
    assert settings["scheme"] == "CERSA" and settings["subspace_energy"] == 0.9 and settings["r"] == 4
    # To train on, it is inside of the subspaces again, at the same place.
    again = PeftModel.from_pretrained(make_unet(), tmp_path / "adapter", is_trainable=True)
    for (_, one), (_, two) in zip(subspace_factors(model), subspace_factors(again), strict=True):
        torch.testing.assert_close(one.coordinates, two.coordinates, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.weight, two.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", ["uniform", [0.0, 1.0, 0.0]])
def test_under_one_gate_it_is_a_plain_lora(tmp_path, gate):
    pipe = make_pipeline("sd")
    model, inputs = confined(denoiser_of(pipe)), UNET.inputs(2)
    fera.save_adapter(pipe, tmp_path / "adapter")
    lora = static_lora(
        open_adapter(tmp_path / "adapter"), torch.full((3,), 1 / 3) if gate == "uniform" else torch.tensor(gate)
    )
    own = layers_of(model)
    for name, pair in lora.layers.items():
        layer = own[name]
        weights = (torch.full((3,), 1 / 3) if gate == "uniform" else torch.tensor(gate)).repeat_interleave(4)
        up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        expected = layer.scaling["default"] * (up * weights) @ down
        torch.testing.assert_close(pair.up @ pair.down, expected.detach(), rtol=1e-4, atol=1e-5)
    merged = make_pipeline("sd")
    fera.load_adapter(merged, tmp_path / "adapter")
    merge(merged, gate=gate)
    assert predict(denoiser_of(merged), inputs).isfinite().all()


def test_two_adapters_side_by_side():
    model, inputs = confined(), UNET.inputs(2)
    alone = predict(model, inputs)
    confined(model, "second", seed=5, energy=0.5)
    fera.set_adapters(model, "second")
    second = predict(model, inputs)
    fera.set_adapters(model, "default")
    torch.testing.assert_close(predict(model, inputs), alone)
    fera.set_adapters(model, ["default", "second"])
    both = predict(model, inputs)
    assert not torch.allclose(both, alone, atol=1e-3) and not torch.allclose(both, second, atol=1e-3)
    fera.unload(model, "second")
    torch.testing.assert_close(predict(model, inputs), alone)
    base = predict(make_unet(), inputs)
    fera.unload(model)
    assert torch.equal(predict(model, inputs), base)


def test_it_moves_and_is_copied():
    model, inputs = confined(), UNET.inputs(2)
    expected = predict(model, inputs)
    torch.testing.assert_close(predict(copy.deepcopy(model), inputs), expected)
    half = model.to(torch.bfloat16)
    sixteen = UNET.inputs(2, dtype=torch.bfloat16)
    assert predict(half, sixteen).dtype == torch.bfloat16 and predict(half, sixteen).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert": {"peft_type": "CERSA", "energy": 0}}, "energy of CERSA experts must be a share above 0"),
        ({"expert": {"peft_type": "CERSA", "energy": 1.5}}, "at most 1; got 1.5"),
        ({"expert": {"peft_type": "CERSA", "energy": True}}, "got True"),
        ({"expert": {"peft_type": "CERSA", "r": 4}}, "CERSA does not know: r. It takes energy"),
        ({"expert": CERSA, "router": "gradient"}, "leave `expert` and subspace_energy out"),
        ({"expert": CERSA, "init_lora_weights": "gaussian"}, "leave init_lora_weights out"),
        ({"subspace_energy": 0.9, "expert": {"peft_type": "LOHA", "r": 2}}, "leave it or `expert` out"),
        ({"expert": {"peft_type": "SERCA"}}, "one of .*CERSA; got 'SERCA'"),
    ],
)
def test_what_cannot_be(settings, message):
    with pytest.raises(FeraError, match=message):
        FeraConfig(**settings)


def test_layers_without_a_matrix_are_named(monkeypatch):
    model = make_unet()
    model.conv_in = nn.Conv2d(4, 32, 3, padding=1, groups=4)
    with pytest.raises(FeraError, match="conv_in, a Conv2d with groups has no one matrix"):
        inject_adapter_in_model(FeraConfig(expert=CERSA, target_modules=["conv_in"], r=4, num_experts=1), model)
    assert not layers_of(model), "nothing is left behind"
    broken = make_unet()
    with torch.no_grad():
        broken.conv_out.weight[0] = float("nan")
    before = fingerprint(broken)["tensors"]
    with pytest.raises(FeraError, match="conv_out: a weight of the base is not finite"):
        inject_adapter_in_model(FeraConfig(expert=CERSA, target_modules=["conv_out"]), broken)
    assert fingerprint(broken)["tensors"] == before
