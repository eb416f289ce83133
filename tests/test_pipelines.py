"""Adapters on real, tiny pipelines: load, save, activate, trace, unload, and what goes wrong."""

import copy
import threading

import pytest
import torch
from adapter_cases import COMPONENTS, PROMPTS, add_adapter, denoiser_of, draw, make_pipeline, write_adapter
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

import fera
from fera import FeraConfig, FeraError
from fera.pipelines import adapters
from fera.tuner import FrequencyGate


@pytest.fixture(scope="module", params=["sd", "sd3"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def originals():
    """One pipeline of each kind, never touched."""
    return {kind: make_pipeline(kind) for kind in COMPONENTS}


@pytest.fixture
def pipe(kind, originals):
    return copy.deepcopy(originals[kind])


@pytest.fixture(scope="module")
def ink(kind, tmp_path_factory):
    return write_adapter(kind, tmp_path_factory.mktemp(kind) / "ink", seed=1)


@pytest.fixture(scope="module")
def neon(kind, tmp_path_factory):
    return write_adapter(kind, tmp_path_factory.mktemp(kind) / "neon", seed=2, num_experts=2, num_bands=4, r=3)


@pytest.fixture
def lora(pipe, tmp_path):
    """Folder of a plain LoRA in diffusers' format."""
    other = copy.deepcopy(pipe)
    denoiser_of(other).add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(denoiser_of(other))
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    other.save_lora_weights(tmp_path / "lora", **{f"{component}_lora_layers": layers})
    return tmp_path / "lora"


def bits(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# Load, save, draw


def test_a_loaded_adapter_draws_what_the_saved_one_drew(pipe, kind, tmp_path):
    before = draw(pipe)
    add_adapter(pipe)
    drawn = draw(pipe)
    assert not torch.equal(drawn, before)
    fera.save_adapter(pipe, tmp_path / "out")
    other = make_pipeline(kind)
    fera.load_adapter(other, tmp_path / "out", adapter_name="ink")
    assert torch.equal(draw(other), drawn)


def test_a_fresh_adapter_changes_nothing_bit_for_bit(pipe):
    before = draw(pipe, guidance=3.0)
    denoiser_of(pipe).add_adapter(FeraConfig(target_modules=["to_q", "to_v"]))
    assert torch.equal(draw(pipe, guidance=3.0), before)


def test_saving_again_gives_the_same_file(pipe, ink, tmp_path):
    fera.load_adapter(pipe, ink, adapter_name="some_other_name")
    fera.save_adapter(pipe, tmp_path / "again", adapter_name="some_other_name")
    assert same(load_file(ink / "adapter_model.safetensors"), load_file(tmp_path / "again/adapter_model.safetensors"))


def test_peft_reads_what_fera_saves_and_the_other_way_round(pipe, ink, tmp_path):
    fera.load_adapter(pipe, ink)
    drawn = draw(pipe)
    fera.unload(pipe)
    component = "unet" if hasattr(pipe, "unet") else "transformer"
    wrapped = PeftModel.from_pretrained(denoiser_of(pipe), ink)
    setattr(pipe, component, wrapped.get_base_model())
    assert torch.equal(draw(pipe), drawn)
    wrapped.save_pretrained(tmp_path / "peft")
    fera.unload(pipe)
    fera.load_adapter(pipe, tmp_path / "peft")
    assert torch.equal(draw(pipe), drawn)


def test_load_from_a_single_file_and_from_a_run_folder(pipe, ink, tmp_path):
    fera.load_adapter(pipe, ink)
    drawn = draw(pipe)
    alone = tmp_path / "alone" / "ink.safetensors"
    alone.parent.mkdir()
    alone.write_bytes((ink / "adapter_model.safetensors").read_bytes())
    run = tmp_path / "run"
    run.mkdir()
    (run / "adapter").symlink_to(ink)
    for source in (alone, run):
        fera.unload(pipe)
        fera.load_adapter(pipe, source)
        assert torch.equal(draw(pipe), drawn)


def test_loaded_adapters_are_for_inference(pipe, ink):
    pipe_was_training = denoiser_of(pipe).training
    fera.load_adapter(pipe, ink)
    denoiser = denoiser_of(pipe)
    assert not pipe_was_training and not any(module.training for module in denoiser.modules())
    assert not any(p.requires_grad for name, p in denoiser.named_parameters() if "lora" in name or "router" in name)


def test_the_batch_and_guidance_do_not_change_an_image(pipe, ink):
    fera.load_adapter(pipe, ink)
    for guidance in (1.0, 3.0):
        together = draw(pipe, guidance=guidance)
        apart = [draw(pipe, [prompt], guidance, seed=i) for i, prompt in enumerate(PROMPTS)]
        torch.testing.assert_close(together, torch.cat(apart), atol=1e-5, rtol=1e-4)


def test_load_into_a_denoiser(pipe, ink):
    fera.load_adapter(pipe, ink)
    drawn = draw(pipe)
    fera.unload(pipe)
    fera.load_adapter(denoiser_of(pipe), ink)
    assert torch.equal(draw(pipe), drawn)


def test_save_from_a_peft_model(pipe, ink, tmp_path):
    model = get_peft_model(denoiser_of(pipe), FeraConfig(r=2, lora_alpha=4, target_modules=["to_q"]))
    fera.save_adapter(model, tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_denoiser_is_named_where_a_pipeline_has_it(pipe, kind, ink):
    fera.load_adapter(pipe, ink, component=COMPONENTS[kind])
    with pytest.raises(FeraError, match=f"no denoiser 'vae' in this pipeline; there are: {COMPONENTS[kind]}"):
        fera.load_adapter(pipe, ink, adapter_name="b", component="vae")


# Several adapters


def test_two_adapters_with_weights(pipe, ink, neon):
    base = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name="ink")
    inked = draw(pipe)
    fera.load_adapter(pipe, neon, adapter_name="neon")
    neoned = draw(pipe)
    assert adapters(pipe) == ["ink", "neon"]

    fera.set_adapters(pipe, "ink")
    assert torch.equal(draw(pipe), inked)
    fera.set_adapters(pipe, ["neon"])
    assert torch.equal(draw(pipe), neoned)
    fera.set_adapters(pipe, ["ink", "neon"], weights=[0.7, 0.3])
    both = draw(pipe)
    assert not any(torch.equal(both, other) for other in (base, inked, neoned))
    fera.set_adapters(pipe, ["ink", "neon"], weights=[1.0, 0.0])
    torch.testing.assert_close(draw(pipe), inked)
    fera.set_adapters(pipe, ["ink", "neon"], weights=0.0)
    torch.testing.assert_close(draw(pipe), base)
    fera.set_adapters(pipe, [])
    assert torch.equal(draw(pipe), base)
    fera.set_adapters(pipe, "ink")
    assert torch.equal(draw(pipe), inked)


def test_weights_scale_experts_and_not_gates(pipe, ink):
    fera.load_adapter(pipe, ink)
    with fera.trace(pipe) as full:
        draw(pipe, steps=1)
    fera.set_adapters(pipe, "default", 0.25)
    with fera.trace(pipe) as weighted:
        draw(pipe, steps=1)
    assert torch.equal(full[0].gates, weighted[0].gates)


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["ink", "gone"], None, "unknown adapter: gone; there are: ink"),
        (["ink"], [0.5, 0.5], "got 2 weights for 1 adapters: ink"),
    ],
)
def test_set_adapters_refuses(pipe, ink, names, weights, message):
    fera.load_adapter(pipe, ink, adapter_name="ink")
    drawn = draw(pipe)
    with pytest.raises(FeraError, match=message):
        fera.set_adapters(pipe, names, weights)
    assert torch.equal(draw(pipe), drawn)


def test_set_adapters_without_any_adapter(pipe):
    with pytest.raises(FeraError, match="unknown adapter: ink; there are: none"):
        fera.set_adapters(pipe, "ink")


# Beside diffusers' own methods


def test_a_plain_lora_beside_a_routed_adapter(pipe, ink, lora):
    base = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name="ink")
    inked = draw(pipe)
    pipe.load_lora_weights(lora, adapter_name="plain")
    assert adapters(pipe) == ["ink", "plain"]
    fera.set_adapters(pipe, "ink")
    assert torch.equal(draw(pipe), inked)
    fera.set_adapters(pipe, "plain")
    plain = draw(pipe)
    assert not torch.equal(plain, base)
    fera.set_adapters(pipe, ["ink", "plain"], [0.5, 0.5])
    assert not any(torch.equal(draw(pipe), other) for other in (base, inked, plain))
    fera.unload(pipe)
    assert adapters(pipe) == ["plain"]
    fera.set_adapters(pipe, "plain")
    assert torch.equal(draw(pipe), plain)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), base)


def test_a_routed_adapter_beside_a_plain_lora_that_was_there_first(pipe, ink, lora):
    pipe.load_lora_weights(lora, adapter_name="plain")
    plain = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name="ink")
    fera.unload(pipe, "ink")
    fera.set_adapters(pipe, "plain")
    assert torch.equal(draw(pipe), plain)


def test_diffusers_methods_on_a_denoiser(pipe, ink, neon):
    base = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name="ink")
    inked = draw(pipe)
    fera.load_adapter(pipe, neon, adapter_name="neon")
    neoned = draw(pipe)
    denoiser = denoiser_of(pipe)
    denoiser.set_adapters(["ink"])
    assert torch.equal(draw(pipe), inked)
    denoiser.disable_adapters()
    assert torch.equal(draw(pipe), base)
    denoiser.enable_adapters()
    assert torch.equal(draw(pipe), inked)
    denoiser.set_adapter("neon")
    assert torch.equal(draw(pipe), neoned)
    denoiser.set_adapters(["ink", "neon"], weights=[0.7, 0.3])
    mixed = draw(pipe)
    fera.set_adapters(pipe, ["ink", "neon"], [0.7, 0.3])
    assert torch.equal(draw(pipe), mixed)
    assert denoiser.active_adapters() == ["ink", "neon"]
    denoiser.delete_adapters("neon")
    assert adapters(pipe) == ["ink"]
    denoiser.set_adapters(["ink"])
    assert torch.equal(draw(pipe), inked)


def test_a_pipelines_set_adapters(pipe, ink, neon):
    fera.load_adapter(pipe, ink, adapter_name="ink")
    inked = draw(pipe)
    fera.load_adapter(pipe, neon, adapter_name="neon")
    pipe.set_adapters(["ink"])
    assert torch.equal(draw(pipe), inked)
    assert pipe.get_active_adapters() == ["ink"]


def test_adapters_follow_the_denoiser_to_another_precision(pipe, ink):
    fera.load_adapter(pipe, ink)
    drawn = draw(pipe)
    pipe.to(torch.bfloat16)
    routers = [p for name, p in denoiser_of(pipe).named_parameters() if "router" in name]
    assert {p.dtype for p in routers} == {torch.float32}
    assert (draw(pipe).float() - drawn).abs().mean() < 0.2


# Trace


def test_trace_has_one_entry_a_step_and_adapter(pipe, ink, neon):
    fera.load_adapter(pipe, ink, adapter_name="ink")
    fera.load_adapter(pipe, neon, adapter_name="neon")
    fera.set_adapters(pipe, ["ink", "neon"])
    with fera.trace(pipe) as steps:
        drawn = draw(pipe, steps=3)
    assert [entry.adapter for entry in steps] == ["ink", "neon"] * 3
    times = [float(entry.timestep.flatten()[0]) for entry in steps[::2]]
    assert times == sorted(times, reverse=True) and len(set(times)) == 3
    for entry in steps:
        experts, bands = (3, 3) if entry.adapter == "ink" else (2, 4)
        assert entry.gates.shape == (len(PROMPTS), experts)
        assert entry.indicator.shape == (len(PROMPTS), bands)
        for rows in (entry.gates, entry.indicator):
            torch.testing.assert_close(rows.sum(1), torch.ones(len(PROMPTS)))
            assert rows.dtype == torch.float32 and not rows.requires_grad
    assert torch.equal(draw(pipe, steps=3), drawn), "tracing changes nothing"
    assert len(steps) == 6, "and ends with its block"


def test_both_halves_of_guidance_have_one_gate(pipe, ink):
    fera.load_adapter(pipe, ink)
    with fera.trace(pipe) as steps:
        draw(pipe, guidance=3.0)
    for entry in steps:
        assert entry.gates.shape[0] == 2 * len(PROMPTS)
        assert torch.equal(*entry.gates.chunk(2))
    assert not torch.equal(steps[0].gates[0], steps[0].gates[1]), "another latent has another gate"


def test_traces_nest_and_survive_errors(pipe, ink):
    fera.load_adapter(pipe, ink)
    with fera.trace(pipe) as outer:
        draw(pipe, steps=1)
        with fera.trace(denoiser_of(pipe)) as inner:
            draw(pipe, steps=1)
    assert (len(outer), len(inner)) == (2, 1)
    with pytest.raises(RuntimeError, match="stop"), fera.trace(pipe):
        raise RuntimeError("stop")
    draw(pipe, steps=1)
    assert (len(outer), len(inner)) == (2, 1)


def test_nothing_is_traced_where_nothing_is_routed(pipe, ink):
    with pytest.raises(FeraError, match="there is no FeRA adapter here"), fera.trace(pipe):
        pass
    fera.load_adapter(pipe, ink)
    fera.set_adapters(pipe, [])
    with fera.trace(pipe) as steps:
        draw(pipe)
    assert steps == []


def test_two_pipelines_in_two_threads(kind, pipe, ink, neon):
    other = make_pipeline(kind)
    fera.load_adapter(pipe, ink)
    fera.load_adapter(other, neon)
    alone = draw(pipe, steps=4), draw(other, steps=4)
    drawn = {}
    threads = [
        threading.Thread(target=lambda number=number, target=target: drawn.update({number: draw(target, steps=4)}))
        for number, target in enumerate((pipe, other))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(drawn[0], alone[0]) and torch.equal(drawn[1], alone[1])


# Unload


def test_unload_leaves_the_pipeline_as_it_was(pipe, ink, neon):
    before, drawn = bits(denoiser_of(pipe)), draw(pipe)
    names = [name for name, _ in denoiser_of(pipe).named_modules()]
    fera.load_adapter(pipe, ink, adapter_name="ink")
    fera.load_adapter(pipe, neon, adapter_name="neon")
    draw(pipe)
    fera.unload(pipe)
    assert same(bits(denoiser_of(pipe)), before)
    assert torch.equal(draw(pipe), drawn)
    assert [name for name, _ in denoiser_of(pipe).named_modules()] == names
    assert not denoiser_of(pipe)._forward_pre_hooks and not denoiser_of(pipe)._forward_hooks
    assert adapters(pipe) == []
    assert not hasattr(denoiser_of(pipe), "peft_config")


def test_unload_one_of_two(pipe, ink, neon):
    fera.load_adapter(pipe, ink, adapter_name="ink")
    inked = draw(pipe)
    fera.load_adapter(pipe, neon, adapter_name="neon")
    fera.unload(pipe, "neon")
    assert adapters(pipe) == ["ink"]
    fera.set_adapters(pipe, "ink")
    assert torch.equal(draw(pipe), inked)
    with pytest.raises(FeraError, match="no FeRA adapter 'neon' to unload; there are: ink"):
        fera.unload(pipe, "neon")


def test_unload_where_there_is_nothing(pipe):
    fera.unload(pipe)
    with pytest.raises(FeraError, match="no FeRA adapter 'ink' to unload; there are: none"):
        fera.unload(pipe, "ink")


def test_a_name_is_free_again_after_unloading(pipe, ink, neon):
    fera.load_adapter(pipe, ink)
    with pytest.raises(FeraError, match="already has an adapter 'default'; choose another adapter_name, or unload it"):
        fera.load_adapter(pipe, neon)
    drawn = draw(pipe)
    fera.unload(pipe)
    fera.load_adapter(pipe, neon)
    assert not torch.equal(draw(pipe), drawn)


# Refusals leave the pipeline alone


@pytest.fixture
def untouched(pipe):
    """Fails where a refusal left something behind."""
    before, drawn = bits(denoiser_of(pipe)), draw(pipe)
    yield
    assert same(bits(denoiser_of(pipe)), before)
    assert adapters(pipe) == []
    assert not any(isinstance(module, FrequencyGate) for module in denoiser_of(pipe).modules())
    assert torch.equal(draw(pipe), drawn)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", ["", "v1.5"])
def test_names_with_dots_are_refused(pipe, ink, name):
    with pytest.raises(FeraError, match="adapter_name must be a name without dots"):
        fera.load_adapter(pipe, ink, adapter_name=name)


@pytest.mark.usefixtures("untouched")
def test_another_class_of_denoiser_is_refused(pipe, kind, tmp_path):
    foreign = write_adapter("sd3" if kind == "sd" else "sd", tmp_path / "foreign")
    with pytest.raises(FeraError, match="was trained on a .*, but this base is a .*Load the adapter into the base"):
        fera.load_adapter(pipe, foreign)


@pytest.mark.usefixtures("untouched")
def test_other_weights_are_refused_unless_meant(pipe, kind, tmp_path):
    other = make_pipeline(kind)
    with torch.no_grad():
        for parameter in denoiser_of(other).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)) * 0.1)
    fera.save_adapter(add_adapter(other), tmp_path / "out")
    with pytest.raises(FeraError, match="same architecture, but the weights differ by"):
        fera.load_adapter(pipe, tmp_path / "out")
    fera.load_adapter(pipe, tmp_path / "out", allow_other_base=True)
    fera.unload(pipe)


@pytest.mark.usefixtures("untouched")
def test_a_damaged_file_is_refused(pipe, ink, tmp_path):
    content = (ink / "adapter_model.safetensors").read_bytes()
    for size in (0, 7, 100, len(content) // 2, len(content) - 1):
        damaged = tmp_path / "damaged.safetensors"
        damaged.write_bytes(content[:size])
        with pytest.raises(FeraError, match="not a readable safetensors file"):
            fera.load_adapter(pipe, damaged)


@pytest.mark.usefixtures("untouched")
def test_a_tensor_too_few_is_refused(pipe, ink, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    weights = ink / "adapter_model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(weights)
    for unwanted in ("router", "lora_B"):
        fewer = dict(tensors)
        fewer.pop(next(key for key in tensors if unwanted in key))
        save_file(fewer, tmp_path / "fewer.safetensors", metadata=metadata)
        with pytest.raises(FeraError, match="the adapter's file has no tensor .*: it is incomplete"):
            fera.load_adapter(pipe, tmp_path / "fewer.safetensors")


@pytest.mark.usefixtures("untouched")
def test_a_hub_id_offline_is_one_clear_error(pipe):
    with pytest.raises(FeraError, match="no adapter at 'someone/ink' .no such folder here, and not found on"):
        fera.load_adapter(pipe, "someone/ink")


def test_what_is_no_pipeline_is_refused(ink, tmp_path):
    with pytest.raises(FeraError, match="expected a diffusers pipeline or a denoiser, got a str"):
        fera.load_adapter("runs/ink", ink)


def test_a_pipeline_without_a_known_denoiser_names_what_it_has(ink):
    pipe = make_pipeline("sd")
    pipe.unet = pipe.vae
    with pytest.raises(FeraError, match="fera knows none of this StableDiffusionPipeline's components .*vae"):
        fera.load_adapter(pipe, ink)


def test_save_names_what_there_is(pipe, ink, tmp_path):
    with pytest.raises(FeraError, match="no adapter 'default' to save; there are: none"):
        fera.save_adapter(pipe, tmp_path / "out")
    fera.load_adapter(pipe, ink, adapter_name="ink")
    with pytest.raises(FeraError, match="no adapter 'default' to save; there are: ink"):
        fera.save_adapter(pipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_saving_a_plain_lora_is_refused(pipe, lora, tmp_path):
    pipe.load_lora_weights(lora, adapter_name="plain")
    with pytest.raises(FeraError, match="no FeRA adapter 'plain' to save"):
        fera.save_adapter(pipe, tmp_path / "out", adapter_name="plain")


def test_the_adapters_of_these_tests_route(pipe, ink):
    """Were all gates alike, the tests above would prove little."""
    fera.load_adapter(pipe, ink)
    gates = denoiser_of(pipe).fera.router["default"](torch.eye(3))
    assert gates.std(dim=0).max() > 0.01
