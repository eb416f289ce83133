"""torch.compile: one graph, no recompilation as gates change, the same outputs and gradients."""

import pytest
import torch
from models import flux
from peft import get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch._dynamo.testing import CompileCounter
from tuner_cases import CASES, SD3, UNET, adapter_gradients, config, fill, find_gate, flux_inputs, predict, step

# As small as they come: the compiler's time grows with the layers.
SMALL = {
    "unet": {
        "block_out_channels": (16,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "mid_block_type": None,
    },
    "sd3": {"num_layers": 1},
}
cases = pytest.mark.parametrize("case", CASES, ids=repr)


def small(case):
    return case.model(**SMALL[case.name])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@cases
def test_a_whole_denoiser_compiles_without_a_break_and_once(case):
    model = fill(inject_adapter_in_model(config(), small(case)))
    inputs = [case.inputs(2, seed=seed) for seed in range(3)]
    with torch.no_grad():
        expected = [predict(model, one) for one in inputs]
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        graphs = []
        for one, right in zip(inputs, expected, strict=True):  # other latents, other gates, the same graphs
            torch.testing.assert_close(predict(compiled, one), right, rtol=1e-4, atol=1e-5)
            graphs.append(counter.frame_count)
    assert graphs[0] <= 2  # the hook's and the forward's
    assert set(graphs) == {graphs[0]}


@pytest.mark.parametrize("router_input", ["shares+timestep", "log_energies"])
def test_other_router_inputs_compile_without_a_break_and_once(router_input):
    model = fill(inject_adapter_in_model(config(router_input=router_input), small(SD3)))
    inputs = [{**SD3.inputs(2, seed=seed), "timestep": torch.tensor([900.0 - 300 * seed])} for seed in range(3)]
    with torch.no_grad():
        expected = [predict(model, one) for one in inputs]
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        graphs = []
        for one, right in zip(inputs, expected, strict=True):
            torch.testing.assert_close(predict(compiled, one), right, rtol=1e-4, atol=1e-5)
            graphs.append(counter.frame_count)
    assert graphs[0] <= 2
    assert set(graphs) == {graphs[0]}


@pytest.mark.parametrize("case", [pytest.param(UNET, marks=pytest.mark.slow), SD3], ids=repr)
def test_compiled_gradients_equal_plain_ones(case):
    model = fill(get_peft_model(case.model(), config())).train()
    inputs = [case.inputs(2, seed=seed) for seed in range(2)]
    plain = []
    for one in inputs:
        step(model, one)
        plain.append(adapter_gradients(model))
    base = model.get_base_model()
    base.compile(backend="aot_eager", fullgraph=True)
    for one, expected in zip(inputs, plain, strict=True):
        step(model, one)
        found = adapter_gradients(model)
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_switching_the_adapter_off_and_on_while_compiled():
    model = fill(get_peft_model(small(SD3), config()))
    inputs = SD3.inputs(2)
    with torch.no_grad():
        routed, base = predict(model, inputs), predict(small(SD3), inputs)
        compiled = torch.compile(model, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(predict(compiled, inputs), routed, rtol=1e-4, atol=1e-5)
            with model.disable_adapter():
                torch.testing.assert_close(predict(compiled, inputs), base, rtol=1e-4, atol=1e-5)


@cases
def test_compiled_blocks_in_a_plain_denoiser(case):
    """Regional compilation: hooks run as ever, blocks are compiled and read the gates."""
    model = fill(inject_adapter_in_model(config(), small(case)))
    inputs = [case.inputs(2, seed=seed) for seed in range(3)]
    with torch.no_grad():
        expected = [predict(model, one) for one in inputs]
        counter = CompileCounter()
        blocks = [m for m in model.modules() if type(m).__name__ in ("BasicTransformerBlock", "JointTransformerBlock")]
        for block in blocks:
            block.compile(backend=counter, fullgraph=True)
        after_first = None
        for one, right in zip(inputs, expected, strict=True):
            torch.testing.assert_close(predict(model, one), right, rtol=1e-4, atol=1e-5)
            after_first = after_first or counter.frame_count
    assert 1 <= after_first == counter.frame_count <= len(blocks)


def test_packed_latents_compile_by_blocks_and_say_so():
    """Their places are read off ids, which the compiler cannot: as a whole with a break, by blocks without."""
    model = fill(inject_adapter_in_model(config(), flux.make_transformer()))
    inputs = [flux_inputs(seed) for seed in range(3)]
    with torch.no_grad():
        expected = [predict(model, one) for one in inputs]
        whole, blocks = CompileCounter(), CompileCounter()
        compiled = torch.compile(model, backend=whole)
        for one, right in zip(inputs, expected, strict=True):
            torch.testing.assert_close(predict(compiled, one), right, rtol=1e-4, atol=1e-5)
        assert whole.frame_count <= 3
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match="compile_repeated_blocks"):
            torch.compile(model, backend="eager", fullgraph=True)(**inputs[0])
        torch._dynamo.reset()
        model.compile_repeated_blocks(backend=blocks, fullgraph=True)
        after = []
        for one, right in zip(inputs, expected, strict=True):
            torch.testing.assert_close(predict(model, one), right, rtol=1e-4, atol=1e-5)
            after.append(blocks.frame_count)
    assert after[0] > 0 and set(after) == {after[0]}


def test_checkpointed_and_compiled_blocks():
    model = fill(get_peft_model(small(SD3), config())).train()
    inputs = SD3.inputs(2)
    step(model, inputs)
    plain = adapter_gradients(model)
    model.get_base_model().enable_gradient_checkpointing()
    for block in [m for m in model.modules() if type(m).__name__ == "JointTransformerBlock"]:
        block.compile(backend="aot_eager")
    loss = predict(model, inputs).square().mean()
    with torch.no_grad():
        predict(model, SD3.inputs(2, seed=9))
    model.zero_grad()
    loss.backward()
    for name, gradient in adapter_gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-6)


def test_an_exception_in_a_compiled_forward_leaves_no_gate():
    model = fill(inject_adapter_in_model(config(), small(SD3)))
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected = predict(compiled, SD3.inputs(2))
        broken = SD3.inputs(2)
        broken["encoder_hidden_states"] = torch.zeros(2, 5, 33)
        with pytest.raises(RuntimeError):
            predict(compiled, broken)
        assert find_gate(model).gates is None
        layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
        with pytest.raises(ValueError, match="outside its denoiser's forward"):
            layer(torch.zeros(2, 5, layer.in_features))
        torch.testing.assert_close(predict(compiled, SD3.inputs(2)), expected)
