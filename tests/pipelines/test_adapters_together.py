"""Several adapters on a pipeline, routed and plain, weighed, switched and taken out."""

import copy

import pytest
import torch
from adapter_cases import denoiser_of, draw
from peft import LoraConfig, get_peft_model_state_dict

import fera
from fera import FeraError
from fera.pipelines.adapters import adapters

pytest_plugins = ("pipeline_fixtures",)


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


@pytest.mark.parametrize("off", ["pipeline", "denoiser"])
def test_to_activate_is_to_act(pipe, ink, neon, lora, off):
    """Also after diffusers has switched all adapters off, of whatever kind."""
    base = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name="ink")
    inked = draw(pipe)
    pipe.load_lora_weights(lora, adapter_name="plain")
    switch_off = {"pipeline": pipe.disable_lora, "denoiser": denoiser_of(pipe).disable_adapters}[off]
    switch_off()
    assert torch.equal(draw(pipe), base)
    fera.set_adapters(pipe, "ink")
    assert pipe.get_active_adapters() == ["ink"] and torch.equal(draw(pipe), inked)
    with fera.trace(pipe) as steps:
        draw(pipe)
    assert len(steps) == 2
    switch_off()
    fera.load_adapter(pipe, ink, adapter_name="again")
    assert torch.equal(draw(pipe), inked)
    switch_off()
    with pytest.raises(FeraError, match="unknown adapter"):
        fera.set_adapters(pipe, "gone")
    with pytest.raises(FeraError, match="already has an adapter"):
        fera.load_adapter(pipe, neon, adapter_name="ink")
    assert torch.equal(draw(pipe), base), "what is refused changes nothing"
    fera.set_adapters(pipe, [])
    assert torch.equal(draw(pipe), base)
    assert not any(
        parameter.requires_grad for name, parameter in denoiser_of(pipe).named_parameters() if "lora_" in name
    )


def test_a_load_that_fails_leaves_adapters_off(pipe, ink, neon, monkeypatch):
    base = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name="ink")
    pipe.disable_lora()

    def fail(*arguments):
        raise FeraError("damaged")

    monkeypatch.setattr("fera.pipelines.adapters.set_peft_model_state_dict", fail)
    with pytest.raises(FeraError, match="damaged"):
        fera.load_adapter(pipe, neon, adapter_name="neon")
    assert torch.equal(draw(pipe), base)


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


def test_a_negative_weight_turns_the_experts_round(pipe, ink):
    fera.load_adapter(pipe, ink)
    fera.set_adapters(pipe, "default", -0.5)
    drawn = draw(pipe)
    fera.set_adapters(pipe, "default", 0.5)
    assert not torch.equal(draw(pipe), drawn)
    with torch.no_grad():
        for name, parameter in denoiser_of(pipe).named_parameters():
            if ".lora_B." in name:
                parameter.neg_()
    torch.testing.assert_close(draw(pipe), drawn)


def test_a_plain_lora_added_by_its_config(pipe, ink):
    fera.load_adapter(pipe, ink, adapter_name="ink")
    inked = draw(pipe)
    denoiser = denoiser_of(pipe)
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "plain")
    fera.set_adapters(pipe, ["ink", "plain"], [1.0, 0.5])
    with fera.trace(pipe) as steps:
        both = draw(pipe)
    assert {routing.adapter for routing in steps} == {"ink"} and not torch.equal(both, inked)
    denoiser.delete_adapters("plain")
    fera.set_adapters(pipe, "ink")
    assert torch.equal(draw(pipe), inked)


def test_diffusers_deletes_a_routed_adapter(pipe, ink, lora):
    base = draw(pipe)
    pipe.load_lora_weights(lora, adapter_name="plain")
    plain = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name="ink")
    fera.set_adapters(pipe, ["ink", "plain"])
    pipe.delete_adapters("ink")
    assert adapters(pipe) == ["plain"]
    with pytest.raises(FeraError, match="there are: plain"):
        fera.set_adapters(pipe, "ink")
    fera.set_adapters(pipe, "plain")
    assert torch.equal(draw(pipe), plain)
    fera.set_adapters(pipe, [])
    assert torch.equal(draw(pipe), base)


def test_a_plain_lora_on_the_text_encoder(pipe, ink, tmp_path):
    other = copy.deepcopy(pipe)
    other.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    layers = get_peft_model_state_dict(other.text_encoder, adapter_name="default")
    other.save_lora_weights(tmp_path / "text", text_encoder_lora_layers=layers)

    base = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name="ink")
    with fera.trace(pipe) as steps:
        inked = draw(pipe)
    pipe.load_lora_weights(tmp_path / "text", adapter_name="words")
    with fera.trace(pipe) as steps_of_both:
        both = draw(pipe)
    assert not torch.equal(both, inked)
    assert [routing.adapter for routing in steps_of_both] == ["ink"] * 2
    assert torch.equal(steps_of_both[0].gates, steps[0].gates), "words do not steer the gate"
    assert adapters(pipe) == ["ink"], "fera sees the denoiser's only"
    fera.set_adapters(pipe, [])
    assert not torch.equal(draw(pipe), base), "and leaves the text encoder's alone"
    fera.set_adapters(pipe, "ink")
    assert torch.equal(draw(pipe), both)
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), base), "diffusers takes all adapters out, routed ones too"
