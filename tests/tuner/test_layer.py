"""What a routed layer computes: the released formula in float64, PEFT's LoRA, batches."""

import pytest
import torch
from diffusers import UNet3DConditionModel
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Conv2d as LoraConv2d
from peft.tuners.lora.layer import LoraLayer
from tuner_cases import (
    ATTENTION,
    CASES,
    SD3,
    UNET,
    config,
    doubled,
    fill,
    latents,
    make_video_unet,
    predict,
    sample_of,
    step,
    video_inputs,
)

import fera
from fera import FeraError, register_denoiser
from fera.tuner.fast.linear import RoutedLinear

CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "proj_in", "conv_in"]
OTHERS = ["time_emb_proj", "linear_1", "ff.net.0.proj"]


def observe(model, inputs):
    """Every routed layer's input, output and the gates that were in force, in one forward."""
    gate = model.base_model.model.fera
    seen = []

    def note(layer, args, output):
        seen.append((layer, args[0].detach(), output.detach(), {k: v.detach() for k, v in gate.gates.items()}))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, LoraLayer)]
    with torch.no_grad():
        predict(model, inputs)
    for hook in hooks:
        hook.remove()
    return seen


def released_formula(layer, x, gate, scale, adapter="default"):
    """Sample by sample, expert by expert: the base layer's output and sum_e g_e scale B_e A_e x."""
    lora_a, lora_b = layer.lora_A[adapter], layer.lora_B[adapter]
    experts = gate.shape[1]
    rank = lora_a.weight.shape[0] // experts
    result = layer.base_layer(x)
    for n in range(len(x)):
        for e in range(experts):
            ranks = slice(e * rank, (e + 1) * rank)
            a, b = lora_a.weight[ranks], lora_b.weight[:, ranks]
            if isinstance(layer, LoraConv2d):
                hidden = torch.nn.functional.conv2d(x[n : n + 1], a, stride=lora_a.stride, padding=lora_a.padding)
                output = torch.nn.functional.conv2d(hidden, b)[0]
            else:
                output = x[n] @ a.T @ b.T
            result[n] += gate[n, e].double() * scale * output
    return result


def check_formula(model, inputs, scale_of):
    seen = observe(model, inputs)
    assert len(seen) == sum(isinstance(m, LoraLayer) for m in model.modules())
    with torch.no_grad():
        for layer, x, output, gates in seen:
            assert x.dtype == output.dtype == torch.float64
            gate = gates["default"]
            assert gate.std(dim=0).max() > 0.01  # samples are routed differently
            expected = released_formula(layer, x, gate, scale_of(layer))
            torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
            assert (expected - layer.base_layer(x)).abs().max() > 1e-3  # the experts matter
    return seen


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize(("experts", "rank", "alpha"), [(3, 2, 4), (2, 5, 1), (4, 1, 8)])
def test_equals_the_released_formula(case, experts, rank, alpha):
    model = get_peft_model(case.model().double(), config(r=rank, num_experts=experts, lora_alpha=alpha))
    check_formula(fill(model), case.inputs(3, dtype=torch.float64), lambda layer: alpha / rank)


def test_equals_the_released_formula_in_convolutions_and_other_layers(tiny_unet):
    model = get_peft_model(tiny_unet().double(), config(target_modules=CONVOLUTIONS + OTHERS))
    seen = check_formula(fill(model), UNET.inputs(3, dtype=torch.float64), lambda layer: 2.0)
    kinds = {(type(layer), x.ndim) for layer, x, _, _ in seen}
    assert kinds == {(LoraConv2d, 4), (RoutedLinear, 3), (RoutedLinear, 2)}


def test_equals_the_released_formula_with_patterns(tiny_unet):
    model = get_peft_model(
        tiny_unet().double(), config(r=2, lora_alpha=4, rank_pattern={"to_q": 3}, alpha_pattern={"to_v": 7})
    )
    ranks = {"to_q": 3}
    alphas = {"to_v": 7}
    names = {module: name.rsplit(".", 1)[1] for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    seen = check_formula(
        fill(model),
        UNET.inputs(2, dtype=torch.float64),
        lambda layer: alphas.get(names[layer], 4) / ranks.get(names[layer], 2),
    )
    for layer, *_ in seen:
        assert layer.lora_A["default"].weight.shape[0] == 3 * ranks.get(names[layer], 2)


def test_equals_the_released_formula_with_rslora(tiny_unet):
    model = get_peft_model(
        tiny_unet().double(),
        config(r=4, lora_alpha=6, use_rslora=True, rank_pattern={"to_q": 2}, alpha_pattern={"to_q": 5}),
    )
    names = {module: name.rsplit(".", 1)[1] for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    check_formula(
        fill(model),
        UNET.inputs(2, dtype=torch.float64),
        lambda layer: 5 / 2**0.5 if names[layer] == "to_q" else 6 / 4**0.5,
    )


def plain_lora_like(routed, base, rank, alpha, targets=ATTENTION):
    lora = get_peft_model(base, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    weights = {name: tensor for name, tensor in routed.state_dict().items() if ".lora_" in name}
    assert weights
    _, unexpected = lora.load_state_dict(weights, strict=False)
    assert not unexpected
    return lora


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_one_expert_is_pefts_lora(case):
    routed = fill(get_peft_model(case.model().double(), config(num_experts=1)))
    lora = plain_lora_like(routed, case.model().double(), rank=2, alpha=4)
    inputs = case.inputs(3, dtype=torch.float64)
    torch.testing.assert_close(predict(routed, inputs), predict(lora, inputs), rtol=1e-12, atol=1e-12)
    assert (predict(lora, inputs) - predict(case.model().double(), inputs)).abs().max() > 1e-3
    for model in (routed, lora):
        step(model, inputs)
    theirs = dict(lora.named_parameters())
    for name, parameter in routed.named_parameters():
        if ".lora_" in name:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_uniform_gate_is_a_wide_lora(case):
    routed = fill(get_peft_model(case.model().double(), config(r=2, num_experts=4, lora_alpha=4)))
    router = (routed.base_model.model.fera).router["default"]
    torch.nn.init.zeros_(router.output.weight)
    torch.nn.init.zeros_(router.output.bias)
    # Rank E r = 8 at scale (alpha / r) / E = 1 / 2, so alpha = 4.
    lora = plain_lora_like(routed, case.model().double(), rank=8, alpha=4)
    inputs = case.inputs(3, dtype=torch.float64)
    torch.testing.assert_close(predict(routed, inputs), predict(lora, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_the_default_scale_makes_a_uniform_gate_a_lora_at_scale_one(case):
    routed = fill(get_peft_model(case.model().double(), config(r=2, num_experts=3, lora_alpha=None)))
    router = routed.base_model.model.fera.router["default"]
    torch.nn.init.zeros_(router.output.weight)
    torch.nn.init.zeros_(router.output.bias)
    lora = plain_lora_like(routed, case.model().double(), rank=6, alpha=6)
    inputs = case.inputs(2, dtype=torch.float64)
    # A third in float32 is not a third.
    torch.testing.assert_close(predict(routed, inputs), predict(lora, inputs), rtol=1e-6, atol=1e-6)


# Batches


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_a_batch_is_its_samples(case):
    model = fill(get_peft_model(case.model(), config()))
    inputs = case.inputs(4)
    with torch.no_grad():
        together = predict(model, inputs)
        apart = torch.cat([predict(model, sample_of(inputs, n)) for n in range(4)])
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
        # Were the first sample's gate used for all, the difference would show.
        gate = model.base_model.model.fera
        bands, router = gate.inputs["default"].bands, gate.router["default"]
        gates = router(bands.indicator(latents(4)))
        assert gates.std(dim=0).max() > 0.02


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_guidance_gives_both_halves_one_gate(case):
    model = fill(get_peft_model(case.model(), config()))
    inputs = case.inputs(2)
    with torch.no_grad(), fera.trace(model) as routings:
        output = predict(model, doubled(inputs))
        alone = predict(model, inputs)
    gates = routings[0].gates
    assert gates.shape == (4, 3)
    torch.testing.assert_close(gates[:2], gates[2:], rtol=0, atol=1e-7)
    torch.testing.assert_close(gates[:2], routings[1].gates, rtol=0, atol=1e-6)
    torch.testing.assert_close(output[:2], alone, rtol=1e-4, atol=1e-5)
    assert (output[2:] - alone).abs().max() > 1e-3  # the halves do differ


@pytest.fixture
def routed_linear(tiny_unet):
    """One routed Linear layer of a UNet, and the UNet's gate."""
    model = fill(get_peft_model(tiny_unet().double(), config()))
    return model.base_model.model.mid_block.attentions[0].transformer_blocks[0].attn1.to_q, model.base_model.model.fera


def test_frames_in_the_batch_follow_their_sample(routed_linear):
    layer, gate = routed_linear
    x = torch.randn(6, 5, 32, dtype=torch.float64)
    weights = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    with torch.no_grad(), gate.using({"default": weights}):
        output = layer(x)
    expected = released_formula(layer, x, weights[[0, 0, 0, 1, 1, 1]], 2.0)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_a_batch_that_cannot_be_told_apart_is_an_error(routed_linear):
    layer, gate = routed_linear
    with gate.using({"default": torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])}):
        with pytest.raises(FeraError, match="a Linear sees 5 rows, and the call has 2 latents whose gates differ"):
            layer(torch.randn(5, 32, dtype=torch.float64))
        with pytest.raises(FeraError, match="sees 1 rows"):
            layer(torch.randn(1, 32, dtype=torch.float64))


def test_a_layer_outside_its_denoisers_forward_is_an_error(routed_linear):
    layer, gate = routed_linear
    with pytest.raises(FeraError, match="'default' was called outside its denoiser's forward"):
        layer(torch.randn(2, 5, 32, dtype=torch.float64))
    with gate.using({"another": torch.ones(2, 3)}), pytest.raises(FeraError, match="'default' was called outside"):
        layer(torch.randn(2, 5, 32, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(2, 32), (2, 5, 32), (2, 3, 5, 32)])
def test_a_linear_layer_takes_any_number_of_axes(routed_linear, shape):
    layer, gate = routed_linear
    x = torch.randn(shape, dtype=torch.float64)
    weights = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    with torch.no_grad(), gate.using({"default": weights}):
        output = layer(x)
    torch.testing.assert_close(output, released_formula(layer, x, weights, 2.0), rtol=1e-12, atol=1e-12)


def test_a_video_denoiser_whose_layers_see_frames_in_the_batch(only_own_denoisers):
    register_denoiser(UNet3DConditionModel, latent=lambda call: call["sample"].flatten(1, 2))
    model = fill(get_peft_model(make_video_unet(), config()))
    inputs = video_inputs(3)
    with torch.no_grad():
        together = predict(model, inputs)
        apart = torch.cat([predict(model, sample_of(inputs, n)) for n in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)


# Dropout, precision


def test_dropout_acts_in_training_only(tiny_unet):
    model = fill(get_peft_model(tiny_unet(), config(lora_dropout=0.5)))
    inputs = UNET.inputs(2)
    with torch.no_grad():
        model.eval()
        assert torch.equal(predict(model, inputs), predict(model, inputs))
        still = predict(model, inputs)
        model.train()
        assert not torch.allclose(predict(model, inputs), still)


@pytest.mark.parametrize("case", [UNET, SD3], ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_keeps_adapter_and_router_in_float32(case, dtype):
    model = fill(get_peft_model(case.model().to(dtype), config()))
    for name, parameter in model.named_parameters():
        own = ".lora_" in name or "fera.router" in name
        assert parameter.dtype == (torch.float32 if own else dtype), name
    inputs = case.inputs(2, dtype=dtype)
    with torch.no_grad(), fera.trace(model) as routings:
        output = predict(model, inputs)
    assert output.dtype == dtype and output.isfinite().all()
    exact = fill(get_peft_model(case.model(), config()))
    expected = predict(exact, case.inputs(2)).detach()
    assert (output.float() - expected).norm() / expected.norm() < 0.05
    latent = inputs["sample" if case is UNET else "hidden_states"]
    gate = model.base_model.model.fera
    assert torch.equal(routings[0].indicator, gate.inputs["default"].bands.indicator(latent.float()))
    assert torch.equal(routings[0].gates, gate.router["default"](routings[0].indicator).detach())


@pytest.mark.parametrize("cast", [lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16()])
def test_casting_a_routed_model_leaves_the_router_exact(tiny_unet, cast):
    model = fill(get_peft_model(tiny_unet(), config()))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "fera.router" in name}
    model = cast(model)
    after = {name: p for name, p in model.named_parameters() if "fera.router" in name}
    assert before and before.keys() == after.keys()
    for name in before:
        assert after[name].dtype == torch.float32 and torch.equal(before[name], after[name])
    dtype = model.base_model.model.dtype
    assert predict(model, UNET.inputs(1, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_autocast_routes_in_float32(case):
    model = fill(get_peft_model(case.model(), config()))
    inputs = case.inputs(2)
    with torch.no_grad():
        with fera.trace(model) as plain:
            expected = predict(model, inputs)
        with fera.trace(model) as routings, torch.autocast("cpu", torch.bfloat16):
            output = predict(model, inputs)
    assert torch.equal(routings[0].gates, plain[0].gates)
    assert torch.equal(routings[0].indicator, plain[0].indicator)
    assert (output.float() - expected).norm() / expected.norm() < 0.05


def test_what_layers_share_in_a_forward_is_not_stale(routed_linear):
    layer, gate = routed_linear
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    first, second = torch.tensor([[0.7, 0.2, 0.1]] * 2), torch.tensor([[0.1, 0.1, 0.8]] * 2)
    with gate.using({"default": first.requires_grad_()}):
        with torch.no_grad():
            layer(x)  # keeps nothing that a later call with gradients would lack
        layer(x).sum().backward()
        assert first.grad.abs().sum() > 0
        with torch.no_grad():
            with gate.using({"default": second}):
                torch.testing.assert_close(layer(x), released_formula(layer, x, second, 2.0), rtol=1e-12, atol=1e-12)
            layer.set_scale("default", 0.5)
            torch.testing.assert_close(layer(x), released_formula(layer, x, first, 1.0), rtol=1e-12, atol=1e-12)
    assert gate.shared == {}
