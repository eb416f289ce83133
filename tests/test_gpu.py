"""On a GPU: what the CPU computes, in full and in mixed precision, without waiting for the device."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from diffusers.training_utils import cast_training_params
from models import flux
from peft import get_peft_model
from peft.tuners.lora.layer import Linear as LoraLinear
from training_cases import log_of, run_config
from tuner_cases import CASES, UNET, Case, adapter_gradients, config, fill, find_gate, flux_inputs, predict, step

import fera
from fera.pipelines.base import load_base
from fera.pipelines.block_offload import offload_blocks, waiting_names
from fera.training import train
from fera.tuner.fast.linear import RoutedLinear

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_convolutions")]
FLUX = Case("flux", flux.make_transformer, lambda batch, seed=0: flux_inputs(seed))
cases = pytest.mark.parametrize("case", CASES, ids=repr)


@contextmanager
def never_waiting() -> Iterator[None]:
    """Raise where the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(value, dtype=None):
    """Tensors of a call on the GPU; latents and texts in a precision, timesteps as they are."""
    if isinstance(value, dict):
        return {name: one.to("cuda") if name == "timestep" else on_gpu(one, dtype) for name, one in value.items()}
    return value.to("cuda", dtype if value.is_floating_point() else None)


@cases
def test_outputs_and_gradients_are_those_of_the_cpu(case):
    model = fill(get_peft_model(case.model(), config())).train()
    inputs = case.inputs(3)
    loss = step(model, inputs)
    expected, drawn = adapter_gradients(model), predict(model.eval(), inputs).detach()
    model.to("cuda").train()
    assert float(step(model, on_gpu(inputs))) == pytest.approx(float(loss), rel=1e-4)
    for name, gradient in adapter_gradients(model).items():
        torch.testing.assert_close(gradient.cpu(), expected[name], rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(predict(model.eval(), on_gpu(inputs)).cpu(), drawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("case", [*CASES, FLUX], ids=repr)
def test_mixed_precision_is_as_exact_as_through_peft(case, checkpointed, dtype, monkeypatch):
    model = fill(get_peft_model(case.model(), config())).train()
    if checkpointed:
        model.get_base_model().enable_gradient_checkpointing()
    mixed = copy.deepcopy(model).to("cuda")
    for parameter in mixed.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)

    def squared_error(inputs, expected) -> float:
        mixed.zero_grad()
        with torch.autocast("cuda", dtype):
            predicted = predict(mixed, on_gpu(inputs, dtype))
        predicted.float().square().mean().backward()
        found = adapter_gradients(mixed)
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        errors = [(found[name].cpu() - right).norm() / right.norm() for name, right in expected.items()]
        return float(torch.stack(errors).square().mean())

    mine, theirs = [], []
    for seed in range(8):
        inputs = case.inputs(3, seed=seed)
        step(model, inputs)
        expected = adapter_gradients(model)
        mine.append(squared_error(inputs, expected))
        with monkeypatch.context() as patch:
            patch.setattr(RoutedLinear, "forward", LoraLinear.forward)
            theirs.append(squared_error(inputs, expected))
    assert sum(mine) <= 1.3 * sum(theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@cases
def test_weights_formed_together_draw_as_exactly_as_peft(case, dtype, monkeypatch):
    model = fill(get_peft_model(case.model(), config())).eval().to("cuda", dtype)
    exact = copy.deepcopy(model).double()
    mine, theirs = 0.0, 0.0
    for seed in range(8):
        one = on_gpu(case.inputs(1, seed=seed), dtype)
        guided = {name: torch.cat([value, value]) for name, value in one.items()}
        with torch.no_grad():
            right = predict(exact, {name: value.double() for name, value in guided.items()})
            mine += float((predict(model, guided).double() - right).square().sum())
            with monkeypatch.context() as patch:
                patch.setattr(RoutedLinear, "forward", LoraLinear.forward)
                theirs += float((predict(model, guided).double() - right).square().sum())
    assert find_gate(model).step_weights._groups
    assert mine <= 1.3 * theirs


@pytest.mark.parametrize("case", [*CASES, FLUX], ids=repr)
@pytest.mark.parametrize("mixed", [False, True])
def test_neither_drawing_nor_training_waits_for_the_device(case, mixed):
    dtype = torch.bfloat16 if mixed else torch.float32
    model = fill(get_peft_model(case.model(), config())).to("cuda", dtype)
    inputs = on_gpu(case.inputs(2), dtype)
    first = {name: value[:1] if value.ndim and len(value) == 2 else value for name, value in inputs.items()}
    with torch.no_grad():
        for _ in range(2):  # reads what it keeps: where tokens lie, transfer functions, which layers there are
            predict(model, first)
        with never_waiting():
            predict(model, first)
    cast_training_params(model.train(), torch.float32)
    for wait in (True, True, False):
        with nullcontext() if wait else never_waiting():
            with torch.autocast("cuda", torch.bfloat16, enabled=mixed):
                loss = predict(model, inputs).float().square().mean()
            loss.backward()


@cases
def test_drawing_of_several_samples_waits_once(case):
    """To ask whether they have one gate."""
    model = fill(get_peft_model(case.model(), config())).to("cuda")
    inputs = on_gpu(case.inputs(2))
    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        predict(model, inputs)
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            predict(model, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("called a synchronizing" in str(warning.message) for warning in caught) == 1


def test_compiled_blocks_draw_the_same():
    model = fill(get_peft_model(UNET.model(), config())).to("cuda").get_base_model()
    inputs = on_gpu(UNET.inputs(2))
    with torch.no_grad():
        expected = predict(model, inputs)
        model.compile_repeated_blocks(fullgraph=True)
        torch.testing.assert_close(predict(model, inputs), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_run_and_drawing_with_its_adapter(precision, tiny_sd_dir, image_folder, tmp_path):
    run = run_config(
        tiny_sd_dir,
        image_folder,
        tmp_path / "run",
        train={"mixed_precision": precision, "consistency_weight": 0.1},
        validation={"prompts": ["a red rocket"]},
    )
    summary = train(run)
    assert summary.skipped_steps == 0
    assert all(torch.tensor(log_of(run, "loss")).isfinite())
    pipe = load_base(str(tiny_sd_dir)).to("cuda")
    fera.load_adapter(pipe, run.output_dir)
    with fera.trace(pipe) as routings:
        pipe("a red rocket", num_inference_steps=2, output_type="latent")
    assert len(routings) == 2 and routings[0].gates.device.type == "cpu"


def test_mixed_precision_takes_the_short_cut(monkeypatch):
    model = fill(get_peft_model(UNET.model(), config())).to("cuda", torch.bfloat16)
    cast_training_params(model, torch.float32)

    def refuse(*args, **kwargs):
        raise AssertionError("the general way was taken")

    monkeypatch.setattr(LoraLinear, "forward", refuse)
    with torch.autocast("cuda", torch.bfloat16):
        predict(model.train(), on_gpu(UNET.inputs(2), torch.bfloat16)).float().sum().backward()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_blocks_that_wait_in_memory(case, count, checkpointed):
    """The same numbers as on the device throughout, and none of the blocks' weights is left there."""
    expected, got = (fill(get_peft_model(case.model(), config())).train() for _ in range(2))
    inputs = on_gpu(case.inputs(3))
    expected.to("cuda")
    offload_blocks(got.get_base_model(), torch.device("cuda"), "blocks", count)
    for model in (expected, got):
        if checkpointed:
            model.get_base_model().enable_gradient_checkpointing()
    for _ in range(3):  # from the second step on blocks come ahead
        expected.zero_grad()
        got.zero_grad()
        assert float(step(got, inputs)) == pytest.approx(float(step(expected, inputs)), rel=1e-5)
        gradients = adapter_gradients(expected)
        for name, gradient in adapter_gradients(got).items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-6)
    waiting = {*waiting_names(got.get_base_model())}
    assert waiting
    for name, weight in got.get_base_model().named_parameters():
        assert weight.device.type == ("cpu" if name in waiting else "cuda")
        assert weight.is_pinned() == (name in waiting)
