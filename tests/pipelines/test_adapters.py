"""Adapters on real, tiny pipelines: load, save, trace, unload."""

import threading

import pytest
import torch
from adapter_cases import COMPONENTS, PROMPTS, add_adapter, bits, denoiser_of, draw, make_pipeline, same
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from tuner_cases import fill

import fera
from fera import FeraConfig, FeraError
from fera.pipelines.adapters import adapters

pytest_plugins = ("pipeline_fixtures",)


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
    fill(model)
    fera.save_adapter(model, tmp_path / "out")
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(model)
    assert saved.keys() == expected.keys() and all(torch.equal(saved[key], expected[key]) for key in expected)


def test_a_pipeline_may_hold_a_peft_model(pipe, kind, ink, tmp_path):
    fera.load_adapter(pipe, ink)
    drawn = draw(pipe)
    fera.unload(pipe)
    setattr(pipe, COMPONENTS[kind], PeftModel.from_pretrained(denoiser_of(pipe), ink))
    with fera.trace(pipe) as steps:
        assert torch.equal(draw(pipe), drawn)
    assert steps and all(step.gates is not None for step in steps)
    fera.save_adapter(pipe, tmp_path / "again")
    assert same(load_file(ink / "adapter_model.safetensors"), load_file(tmp_path / "again/adapter_model.safetensors"))
    fera.set_adapters(pipe, [], [])
    asleep = draw(pipe)
    fera.set_adapters(pipe, ["default"], [1.0])
    assert torch.equal(draw(pipe), drawn) and not torch.equal(asleep, drawn)


def test_the_denoiser_is_named_where_a_pipeline_has_it(pipe, kind, ink):
    fera.load_adapter(pipe, ink, component=COMPONENTS[kind])
    with pytest.raises(FeraError, match=f"no denoiser 'vae' in this pipeline; there are: {COMPONENTS[kind]}"):
        fera.load_adapter(pipe, ink, adapter_name="b", component="vae")


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


def test_the_adapters_of_these_tests_route(pipe, ink):
    """Were all gates alike, the tests above would prove little."""
    fera.load_adapter(pipe, ink)
    gates = denoiser_of(pipe).fera.router["default"](torch.eye(3))
    assert gates.std(dim=0).max() > 0.01
