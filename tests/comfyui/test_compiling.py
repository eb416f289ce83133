"""Adapters in a model that ComfyUI's node compiles."""

import copy
import logging

import pytest
import torch
from comfyui_cases import in_comfyui, inputs
from comfyui_twins import TWINS
from peft import IA3Config, inject_adapter_in_model
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError
from fera.comfyui.adapter import read_adapter
from fera.comfyui.patching import routed

pytestmark = pytest.mark.comfyui


# Of a part of the UNet: to compile all of it takes a minute.
MIDDLE = [f"diffusion_model.middle_block.{part}" for part in ("0.in_layers", "0.emb_layers", "1.transformer_blocks.0")]


def adapter(twin, folder, targets, seed=0, **settings):
    config = FeraConfig(**{"target_modules": targets, "r": 2} | settings)
    denoiser = inject_adapter_in_model(config, copy.deepcopy(twin.denoiser), "default")
    fera.save_adapter(fill(denoiser, seed), folder)
    return read_adapter(folder)


def compiled(patcher, keys=("diffusion_model",), backend="eager"):
    """As ComfyUI's node does it; with the graphs that it finds, but no machine code if not asked for."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    patcher = patcher.clone(disable_dynamic=True)
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(patcher, backend, options, keys=list(keys))
    return patcher


@pytest.fixture(scope="module")
def sd():
    return TWINS["sd15"]()


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_the_whole_model_with_and_without_it(tmp_path):
    """What the compiler has made for one is not taken for the other, in any order, and is kept."""
    twin = TWINS["flux"]()
    ink = adapter(twin, tmp_path / "ink", twin.targets)
    neon = adapter(twin, tmp_path / "neon", ["to_q", "proj_mlp"], seed=1)
    first, second = inputs(twin), inputs(twin, seed=1, part=0.7)
    bare = compiled(twin.patcher())
    patchers = [bare, routed(routed(bare, ink, 1.0), neon, 0.5)]
    plain = [twin.patcher(), routed(routed(twin.patcher(), ink, 1.0), neon, 0.5)]
    expected = [[in_comfyui(twin, patcher, *call) for call in (first, second)] for patcher in plain]
    assert (expected[1][0] - expected[0][0]).abs().max() > 1e-2
    for number in (1, 0, 1):
        drawn = in_comfyui(twin, patchers[number], *first)
        torch.testing.assert_close(drawn, expected[number][0], rtol=1e-4, atol=1e-4)
    made = graphs()
    for number in (0, 1):  # other latents, another sigma: other gates
        drawn = in_comfyui(twin, patchers[number], *second)
        torch.testing.assert_close(drawn, expected[number][1], rtol=1e-4, atol=1e-4)
    assert graphs() == made > 0
    torch.testing.assert_close(in_comfyui(twin, twin.patcher(), *first), expected[0][0])


@pytest.mark.parametrize("order", ["the node before", "the node after"])
def test_a_part_of_the_model(sd, order, tmp_path):
    """Convolutions; samples of one gate and of several."""
    ink = adapter(sd, tmp_path / "ink", "mid_block.*(conv1|time_emb_proj|to_q|proj_in)")
    first = inputs(sd)
    alike = (first[0][:1].repeat(2, 1, 1, 1), *first[1:])
    plain = routed(sd.patcher(), ink, 1.0)
    patcher = compiled(plain, MIDDLE)
    if order == "the node before":
        patcher = routed(compiled(sd.patcher(), MIDDLE), ink, 1.0)
    for call in (first, alike):
        expected = in_comfyui(sd, plain, *call)
        torch.testing.assert_close(in_comfyui(sd, patcher, *call), expected, rtol=1e-4, atol=1e-4)
    assert (in_comfyui(sd, sd.patcher(), *alike) - expected).abs().max() > 1e-2
    assert graphs() > 0


@pytest.mark.slow
def test_machine_code(sd, tmp_path):
    """What the compiler makes by default, of the bare model and with the adapter in it."""
    ink = adapter(sd, tmp_path / "ink", "mid_block.*(conv1|time_emb_proj|to_q|proj_in)")
    bare = compiled(sd.patcher(), MIDDLE, "inductor")
    for call in (inputs(sd), inputs(sd, seed=1, part=0.7)):
        plain, expected = (in_comfyui(sd, one, *call) for one in (sd.patcher(), routed(sd.patcher(), ink, 1.0)))
        torch.testing.assert_close(in_comfyui(sd, routed(bare, ink, 1.0), *call), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(in_comfyui(sd, bare, *call), plain, rtol=1e-4, atol=1e-4)
        assert (expected - plain).abs().max() > 1e-2
    assert graphs() > 0


def test_a_step_that_fails(sd, tmp_path):
    layers = dict(sd.model.named_modules())
    patcher = compiled(routed(sd.patcher(), adapter(sd, tmp_path / "ink", ["to_k"]), 1.0), MIDDLE)
    x, sigma, context = inputs(sd)
    with pytest.raises(RuntimeError):
        in_comfyui(sd, patcher, x, sigma, context[..., :5])
    assert dict(sd.model.named_modules()) == layers


def test_other_schemes_are_refused(sd, tmp_path):
    ink = adapter(sd, tmp_path / "ink", ["to_q"], r=4, expert=IA3Config())
    with pytest.raises(FeraError, match="the model is compiled.*LoRA experts alone"):
        in_comfyui(sd, compiled(routed(sd.patcher(), ink, 1.0), MIDDLE), *inputs(sd))
