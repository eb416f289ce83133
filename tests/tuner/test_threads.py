"""Threads that share a denoiser, or do not: no gate leaks from one into another."""

import threading

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from tuner_cases import CASES, UNET, config, fill, find_gate, predict, sample_of

import fera

cases = pytest.mark.parametrize("case", CASES, ids=repr)


def together(*work):
    """Run functions in threads of their own; what they return, or their exception."""
    results = [None] * len(work)
    failures = []

    def run(index, function):
        try:
            results[index] = function()
        except BaseException as failure:
            failures.append(failure)
            raise

    threads = [threading.Thread(target=run, args=(i, f), daemon=True) for i, f in enumerate(work)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failures and not any(thread.is_alive() for thread in threads), failures
    return results


def meeting_point(model, parties):
    """Make forwards of several threads wait for each other in the middle of the model."""
    barrier = threading.Barrier(parties, timeout=30)
    names = [name for name, _ in model.named_modules() if name.endswith(("attn1", "attn", "to_q"))]
    met = []

    def wait(module, args):
        barrier.wait()
        met.append(threading.get_ident())

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(wait)
    return met


@cases
def test_two_threads_share_a_denoiser(case):
    model = fill(inject_adapter_in_model(config(), case.model()))
    inputs = case.inputs(2)
    apart = [sample_of(inputs, 0), sample_of(inputs, 1)]
    with torch.no_grad():
        expected = [predict(model, one) for one in apart]
    gates = [r.gates for one in apart for r in routing_of(model, one)]
    assert (gates[0] - gates[1]).abs().max() > 0.02  # a leak would show
    met = meeting_point(model, 2)

    def work(one):
        with torch.no_grad():
            return predict(model, one)

    for _ in range(3):
        results = together(*(lambda one=one: work(one) for one in apart))
        for result, right in zip(results, expected, strict=True):
            assert torch.equal(result, right)
    assert len(set(met)) >= 2 and len(met) > 6
    assert find_gate(model).gates is None


def routing_of(model, inputs):
    with torch.no_grad(), fera.trace(model) as routings:
        predict(model, inputs)
    return routings


@cases
def test_one_thread_fails_and_the_other_goes_on(case):
    model = fill(inject_adapter_in_model(config(), case.model()))
    inputs = case.inputs(2)
    apart = [sample_of(inputs, 0), sample_of(inputs, 1)]
    with torch.no_grad():
        expected = predict(model, apart[1])
    failed, started = threading.Event(), threading.Event()
    layers = [module for name, module in model.named_modules() if name.endswith("to_q")]

    def interrupt(module, args):
        if threading.current_thread().name == "failing":
            started.wait(30)
            raise RuntimeError("enough")
        started.set()
        failed.wait(30)

    layers[0].register_forward_pre_hook(interrupt)

    def failing():
        threading.current_thread().name = "failing"
        with pytest.raises(RuntimeError, match="enough"), torch.no_grad():
            predict(model, apart[0])
        failed.set()

    def going_on():
        with torch.no_grad():
            return predict(model, apart[1])

    assert torch.equal(together(failing, going_on)[1], expected)


def test_two_threads_with_a_denoiser_each(tiny_unet):
    models = [fill(inject_adapter_in_model(config(), tiny_unet()), seed) for seed in (0, 1)]
    inputs = [UNET.inputs(2, seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        expected = [predict(model, one) for model, one in zip(models, inputs, strict=True)]
    barrier = threading.Barrier(2, timeout=30)

    def wait(*_):
        barrier.wait()

    for model in models:
        model.mid_block.register_forward_pre_hook(wait)

    def work(index):
        with torch.no_grad():
            return predict(models[index], inputs[index])

    for result, right in zip(together(lambda: work(0), lambda: work(1)), expected, strict=True):
        assert torch.equal(result, right)


def test_two_threads_train_with_gradient_checkpointing(tiny_unet):
    model = fill(get_peft_model(tiny_unet(), config())).train()
    inputs = UNET.inputs(2)
    apart = [sample_of(inputs, 0), sample_of(inputs, 1)]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(one):
        return torch.autograd.grad(predict(model, one).square().mean(), parameters)

    expected = [gradients(one) for one in apart]
    model.get_base_model().enable_gradient_checkpointing()
    met = meeting_point(model, 2)
    results = together(*(lambda one=one: gradients(one) for one in apart))
    assert len(set(met)) >= 2
    for found, right in zip(results, expected, strict=True):
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
