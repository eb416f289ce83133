"""Gradients: they exist, they are right, and checkpointing, compilation and processes do not change them."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from tuner_cases import CASES, UNET, adapter_gradients, config, fill, find_gate, predict, step, unet_inputs

from fera import frequency_energy_consistency, trace

cases = pytest.mark.parametrize("case", CASES, ids=repr)


def close(found, expected, rtol=1e-4, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@cases
def test_experts_and_router_get_gradients(case):
    model = fill(get_peft_model(case.model(), config())).train()
    step(model, case.inputs(3))
    gradients = adapter_gradients(model)
    assert any("fera.router" in name for name in gradients) and any("lora_A" in name for name in gradients)
    for name, gradient in gradients.items():
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name
    for name, parameter in model.named_parameters():
        if name not in gradients:
            assert parameter.grad is None, name


@cases
def test_a_fresh_adapter_starts_to_learn(case):
    model = get_peft_model(case.model(), config()).train()
    inputs = case.inputs(3)
    step(model, inputs)
    for name, gradient in adapter_gradients(model).items():
        # With B = 0 only B has a slope; one step later A and the router follow.
        assert (gradient.abs().sum() > 0) == ("lora_B" in name), name
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    step(model, inputs)
    for name, gradient in adapter_gradients(model).items():
        assert gradient.isfinite().all() and gradient.abs().sum() > 0, name


@cases
def test_gradients_equal_finite_differences(case):
    model = fill(get_peft_model(case.model().double(), config()))
    inputs = case.inputs(2, dtype=torch.float64)
    step_loss = lambda: predict(model, inputs).square().mean()  # noqa: E731
    step_loss().backward()
    generator = torch.Generator().manual_seed(0)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    # The experts are in float64 and can be told to 1e-6; the router is in float32, and so are its differences.
    for name, size, tolerance in [("lora_", 1e-5, 1e-6), ("fera.router", 2e-3, 1e-2)]:
        chosen = [p for n, p in parameters.items() if name in n]
        directions = [torch.randn(p.shape, generator=generator).to(p.dtype) / p[0].numel() ** 0.5 for p in chosen]
        slope = sum(float((p.grad * d).sum()) for p, d in zip(chosen, directions, strict=True))
        losses = []
        with torch.no_grad():
            for sign in (1, -2):
                for p, d in zip(chosen, directions, strict=True):
                    p.add_(sign * size * d)
                losses.append(float(step_loss()))
            for p, d in zip(chosen, directions, strict=True):
                p.add_(size * d)
        assert slope == pytest.approx((losses[0] - losses[1]) / (2 * size), rel=tolerance), name


@cases
def test_the_consistency_loss_trains_a_fresh_adapter(case):
    model = get_peft_model(case.model(), config()).train()
    inputs = case.inputs(2)
    bands = find_gate(model).inputs["default"].bands
    target = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        with torch.no_grad(), model.disable_adapter():
            base = predict(model, inputs)
        adapted = predict(model, inputs)
        loss = (adapted - target).square().mean() + 0.1 * frequency_energy_consistency(base, adapted, target, bands)
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite() and all(g.isfinite().all() for g in adapter_gradients(model).values())
        optimizer.step()
    assert all(g.abs().sum() > 0 for g in adapter_gradients(model).values())


def test_the_latents_gradient_comes_through_the_gate(tiny_unet):
    model = fill(get_peft_model(tiny_unet(), config()))
    inputs = UNET.inputs(1)
    found = []
    for scale in (1.0, 0.0):  # with and without an output of the router that depends on the latent
        with torch.no_grad():
            find_gate(model).router["default"].output.weight.mul_(scale)
        sample = inputs["sample"].clone().requires_grad_()
        predict(model, inputs | {"sample": sample}).square().mean().backward()
        found.append(sample.grad)
    assert (found[0] - found[1]).abs().max() > 1e-5


# Gradient checkpointing


def noisy_life(case, model, inputs):
    """A loss whose backward comes after other forwards: of the base, of another batch, of a larger one."""
    loss = predict(model, inputs).square().mean()
    with torch.no_grad(), model.disable_adapter():
        predict(model, inputs)
    predict(model, case.inputs(3, seed=7))
    with torch.no_grad():
        predict(model, case.inputs(2, seed=8))
    model.zero_grad()
    loss.backward()
    return loss.detach()


@cases
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_recomputes_under_the_gates_of_its_own_forward(case, reentrant):
    model = fill(get_peft_model(case.model(), config())).train()
    inputs = case.inputs(3)
    # The reentrant kind only differentiates through inputs that need it.
    name = next(iter(inputs))
    inputs[name] = inputs[name].requires_grad_()
    plain_loss = noisy_life(case, model, inputs)
    plain = adapter_gradients(model)
    base = model.get_base_model()
    if reentrant:
        base.enable_gradient_checkpointing(
            lambda block, *args: torch.utils.checkpoint.checkpoint(block.__call__, *args, use_reentrant=True)
        )
    else:
        base.enable_gradient_checkpointing()
    calls, gates = [], []
    layer = next(m for n, m in model.named_modules() if isinstance(m, LoraLayer) and "attn" in n)

    def note(*_):
        calls.append(torch.is_grad_enabled())
        gates.append(find_gate(model).gates["default"])

    hook = layer.register_forward_pre_hook(note)
    loss = predict(model, inputs).square().mean()
    forwards = len(calls)
    loss.backward()
    assert forwards == 1 and len(calls) == 2  # the block did run again
    assert torch.equal(gates[0], gates[1])
    hook.remove()
    torch.testing.assert_close(noisy_life(case, model, inputs), plain_loss, rtol=1e-5, atol=1e-6)
    close(adapter_gradients(model), plain)
    assert find_gate(model).gates is None


@cases
def test_checkpointing_switched_on_before_the_adapter(case):
    base = case.model()
    base.enable_gradient_checkpointing()
    model = fill(get_peft_model(base, config())).train()
    plain = fill(get_peft_model(case.model(), config())).train()
    inputs = case.inputs(3)
    for one in (model, plain):
        noisy_life(case, one, inputs)
    close(adapter_gradients(model), adapter_gradients(plain))


def test_the_base_pass_after_the_adapted_pass(tiny_unet):
    """The order that stale gates get wrong: recomputation happens while the adapter is switched on again."""
    model = fill(get_peft_model(tiny_unet(), config())).train()
    inputs = UNET.inputs(2)
    plain = None
    for checkpointing in (False, True):
        if checkpointing:
            model.get_base_model().enable_gradient_checkpointing()
        adapted = predict(model, inputs)
        with torch.no_grad(), model.disable_adapter():
            base = predict(model, inputs)
        model.zero_grad()
        (adapted - base).square().mean().backward()
        if plain is None:
            plain = adapter_gradients(model)
    close(adapter_gradients(model), plain)


def test_checkpointing_of_a_copy_uses_its_own_gate(tiny_unet):
    import copy

    model = fill(get_peft_model(tiny_unet(), config())).train()
    model.get_base_model().enable_gradient_checkpointing()
    step(model, UNET.inputs(2))
    copied = fill(copy.deepcopy(model), 5)
    plain = fill(get_peft_model(tiny_unet(), config()), 5).train()
    for one in (copied, plain):
        step(one, UNET.inputs(2))
    close(adapter_gradients(copied), adapter_gradients(plain))


def test_a_step_does_not_walk_over_all_modules(tiny_unet, monkeypatch):
    """A walk over a denoiser's modules takes about a percent of its training step."""
    model = fill(get_peft_model(tiny_unet(), config())).train()

    def walked(module, *_, **__):
        raise AssertionError(f"all modules of a {type(module).__name__} were visited")

    monkeypatch.setattr(torch.nn.Module, "named_modules", walked)
    with trace(model, to_cpu=False) as routings:  # as each step of training does
        predict(model, UNET.inputs(2)).sum().backward()
    assert len(routings) == 1


def test_a_model_unloaded_after_checkpointing_still_trains(tiny_unet):
    model = fill(get_peft_model(tiny_unet(), config())).train()
    model.get_base_model().enable_gradient_checkpointing()
    step(model, UNET.inputs(2))
    base = model.unload().requires_grad_(True)
    step(base, UNET.inputs(2))
    plain = tiny_unet().train()
    step(plain, UNET.inputs(2))
    close(adapter_gradients(base), adapter_gradients(plain))


def test_plain_lora_beside_checkpointed_fera(tiny_unet):
    """Gates of no adapter: a forward in which only a plain LoRA is active."""
    model = inject_adapter_in_model(config(), tiny_unet(), "routed").train()
    model.enable_gradient_checkpointing()
    fill(model, adapter="routed")
    step(model, UNET.inputs(2))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), model, "plain")
    for module in model.modules():
        if isinstance(module, LoraLayer) or module is find_gate(model):
            module.set_adapter(["plain"])
    step(model, UNET.inputs(2))


# Processes


def _reduced_gradients(rank, processes, address, results):
    """One process of data-parallel training: a part of the batch, gradients averaged with the others'."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=processes)
    model = fill(get_peft_model(UNET.model(), config())).train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    inputs = unet_inputs(4)
    part = {name: value[rank * 2 : rank * 2 + 2] for name, value in inputs.items()}
    parallel(**part).sample.square().mean().backward()
    if rank == 0:
        torch.save(adapter_gradients(model), results)
    dist.barrier()
    # No destructors: gloo's waits for its thread while it holds the interpreter's lock, which that thread may want.
    os._exit(0)


def test_two_processes_give_the_gradients_of_one(tmp_path):
    model = fill(get_peft_model(UNET.model(), config())).train()
    step(model, unet_inputs(4))
    mp.spawn(_reduced_gradients, args=(2, tmp_path / "meet", tmp_path / "gradients.pt"), nprocs=2)
    close(torch.load(tmp_path / "gradients.pt"), adapter_gradients(model))
