"""Diffusers' own methods on a routed pipeline: refused before anything has changed, or done whole."""

import copy

import pytest
import torch
from adapter_cases import add_adapter, bits, denoiser_of, draw, make_pipeline, same
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoHaConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from tiny import make_unet
from tuner_cases import config

import fera
from fera import FeraConfig, FeraError
from fera.pipelines.adapters import adapters

pytest_plugins = ("pipeline_fixtures",)


def both(pipe, ink, lora):
    """A routed and a plain adapter, both at work."""
    fera.load_adapter(pipe, ink, adapter_name="ink")
    pipe.load_lora_weights(lora, adapter_name="plain")
    fera.set_adapters(pipe, ["ink", "plain"], [0.7, 0.5])
    return pipe


def component_of(pipe):
    return "unet" if hasattr(pipe, "unet") else "transformer"


FUSINGS = {
    "the plain one": {"adapter_names": ["plain"]},
    "the routed one": {"adapter_names": ["ink"]},
    "all": {},
    "all at half": {"lora_scale": 0.5},
    "the plain one at half": {"adapter_names": ["plain"], "lora_scale": 0.5},
    "safely": {"safe_fusing": True},
}


@pytest.mark.parametrize("arguments", FUSINGS.values(), ids=FUSINGS)
@pytest.mark.parametrize("of", ["pipeline", "denoiser"])
def test_fusing_is_refused_and_changes_nothing(pipe, ink, lora, arguments, of):
    pipe = both(pipe, ink, lora)
    denoiser, drawn = denoiser_of(pipe), draw(pipe)
    before = bits(denoiser)
    for _ in range(3):  # each try used to halve the scale once more
        with pytest.raises(FeraError, match="no adapter can be fused while 'ink' is loaded.*fera.unload"):
            if of == "pipeline":
                pipe.fuse_lora(components=[component_of(pipe)], **arguments)
            else:
                denoiser.fuse_lora(**arguments)
    assert same(before, bits(denoiser)) and torch.equal(draw(pipe), drawn)
    with fera.trace(pipe) as steps:
        draw(pipe)
    assert len(steps) == 2 and pipe.num_fused_loras == 0


def test_fusing_is_refused_while_the_routed_one_sleeps(pipe, ink, lora):
    """Woken up later, it would be passed by in the layers that are fused."""
    pipe = both(pipe, ink, lora)
    fera.set_adapters(pipe, "ink")
    inked = draw(pipe)
    fera.set_adapters(pipe, "plain")
    with pytest.raises(FeraError, match="no adapter can be fused"):
        pipe.fuse_lora(components=[component_of(pipe)])
    fera.set_adapters(pipe, "ink")
    assert torch.equal(draw(pipe), inked)


@pytest.mark.parametrize("kind", ["sd"], indirect=True)
def test_a_refused_fusing_leaves_the_text_encoder_alone(pipe, ink, lora):
    """Diffusers goes through the components in the order given."""
    pipe = both(pipe, ink, lora)
    plain = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    pipe.text_encoder.add_adapter(plain, adapter_name="plain")
    before, drawn = bits(pipe.text_encoder), draw(pipe)
    for components in (["text_encoder", "unet"], ["unet", "text_encoder"]):
        with pytest.raises(FeraError, match="no adapter can be fused while 'ink' is loaded"):
            pipe.fuse_lora(components=components, adapter_names=["plain"])
    assert same(before, bits(pipe.text_encoder)) and torch.equal(draw(pipe), drawn)
    assert pipe.num_fused_loras == 0
    fera.unload(pipe)
    pipe.fuse_lora(components=["text_encoder", "unet"], adapter_names=["plain"])
    assert not same(before, bits(pipe.text_encoder)) and pipe.num_fused_loras == 1


def test_plain_adapters_fuse_once_the_routed_one_is_gone(pipe, ink, lora):
    pipe = both(pipe, ink, lora)
    fera.set_adapters(pipe, "plain")
    expected = draw(pipe)
    fera.unload(pipe)
    pipe.fuse_lora(components=[component_of(pipe)])
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-5)
    pipe.unfuse_lora(components=[component_of(pipe)])
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-5)
    fera.load_adapter(pipe, ink, adapter_name="ink")


def test_loading_into_fused_layers_is_refused(pipe, ink, lora):
    """A fused layer lets no other adapter act."""
    pipe.load_lora_weights(lora, adapter_name="plain")
    pipe.fuse_lora(components=[component_of(pipe)])
    drawn, before = draw(pipe), bits(denoiser_of(pipe))
    for allow in (False, True):
        with pytest.raises(FeraError, match="adapter plain is fused into .*pipe.unfuse_lora"):
            fera.load_adapter(pipe, ink, adapter_name="ink", allow_other_base=allow)
    assert same(before, bits(denoiser_of(pipe))) and torch.equal(draw(pipe), drawn)
    with pytest.raises(FeraError, match="is fused into"):
        add_adapter(pipe, "ink")
    pipe.unload_lora_weights()  # keeps it in the weights
    assert torch.equal(draw(pipe), drawn)
    fera.load_adapter(pipe, ink, allow_other_base=True)
    assert not torch.equal(draw(pipe), drawn)


def test_projections_are_not_fused_past_routed_layers(ink, kind, pipe):
    denoiser = denoiser_of(pipe)
    fera.load_adapter(pipe, ink)
    inked, before = draw(pipe), bits(denoiser)
    with pytest.raises(FeraError, match="would pass the routed ones by"):
        denoiser.fuse_qkv_projections()
    assert same(before, bits(denoiser)) and torch.equal(draw(pipe), inked)
    fera.unload(pipe)
    denoiser.fuse_qkv_projections()
    with pytest.raises(FeraError, match="projections of .* are fused.*unfuse_qkv_projections"):
        fera.load_adapter(pipe, ink)
    denoiser.unfuse_qkv_projections()


# Unloading


def test_unloading_all_loras_takes_the_gate_too(pipe, ink, neon, lora, tmp_path):
    clean, base = bits(denoiser_of(pipe)), draw(pipe)
    pipe = both(pipe, ink, lora)
    inked_and_plain = draw(pipe)
    pipe.unload_lora_weights()
    denoiser = denoiser_of(pipe)
    assert torch.equal(draw(pipe), base) and same(bits(denoiser), clean) and adapters(pipe) == []
    assert not denoiser._forward_pre_hooks and not denoiser._forward_hooks
    with pytest.raises(FeraError, match="nothing to trace"), fera.trace(pipe):
        pass
    denoiser.save_pretrained(tmp_path / "saved")
    assert same(bits(type(denoiser).from_pretrained(tmp_path / "saved")), clean)
    fera.unload(pipe)
    with pytest.raises(FeraError, match="there are: none"):
        fera.unload(pipe, "ink")
    assert torch.equal(draw(both(pipe, ink, lora)), inked_and_plain)


def test_nothing_to_trace_once_diffusers_has_deleted_the_last(pipe, ink):
    base = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name="ink")
    pipe.delete_adapters("ink")
    assert torch.equal(draw(pipe), base)
    with pytest.raises(FeraError, match="nothing to trace"), fera.trace(pipe):
        pass
    denoiser_of(pipe).unfuse_lora()
    denoiser_of(pipe).fuse_lora()  # of nothing


def test_a_copy_guards_itself(pipe, ink):
    fera.load_adapter(pipe, ink)
    inked = draw(pipe)
    other = copy.deepcopy(pipe)
    other.unload_lora_weights()
    assert torch.equal(draw(pipe), inked) and not torch.equal(draw(other), inked)
    with pytest.raises(FeraError, match="no adapter can be fused"):
        pipe.fuse_lora(components=[component_of(pipe)])


def test_methods_are_the_classs_again_once_nothing_is_routed(pipe, ink):
    before = set(vars(denoiser_of(pipe)))
    fera.load_adapter(pipe, ink)
    fera.unload(pipe)
    assert set(vars(denoiser_of(pipe))) - before <= {"_hf_peft_config_loaded"}


# Saving


def test_a_routed_adapter_is_not_saved_as_a_lora(pipe, ink, tmp_path):
    fera.load_adapter(pipe, ink)
    denoiser, out = denoiser_of(pipe), tmp_path / "out"
    state = get_peft_model_state_dict(denoiser)
    advice = "has no place for its router.*fera.save_adapter.*fera export"
    with pytest.raises(FeraError, match=advice):
        type(pipe).save_lora_weights(out, **{f"{component_of(pipe)}_lora_layers": state})
    with pytest.raises(ValueError, match="Could not automatically infer"):  # experts are none of diffusers' layers
        convert_state_dict_to_diffusers(state)
    with pytest.raises(FeraError, match=advice):
        denoiser.save_lora_adapter(out)
    assert not out.exists()


def test_nor_as_one_when_its_router_has_no_weights(tmp_path):
    pipe = add_adapter(make_pipeline("sd"), router="uniform")
    with pytest.raises(FeraError, match="has no place for its router"):
        type(pipe).save_lora_weights(
            tmp_path / "out",
            unet_lora_layers=get_peft_model_state_dict(pipe.unet),
            unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
        )
    mixed = make_pipeline("sd")
    mixed.unet.add_adapter(FeraConfig(expert=LoHaConfig(r=2), router="uniform", target_modules=["to_q"]))
    with pytest.raises(FeraError, match="has no place for its router"):
        type(pipe).save_lora_weights(tmp_path / "out", unet_lora_layers=get_peft_model_state_dict(mixed.unet))
    assert not (tmp_path / "out").exists()


def test_a_plain_one_beside_it_is(pipe, ink, lora, tmp_path):
    fera.load_adapter(pipe, ink, adapter_name="ink")
    denoiser = denoiser_of(pipe)
    denoiser.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False), "plain")
    plain = draw(pipe)
    state = get_peft_model_state_dict(denoiser, adapter_name="plain")
    type(pipe).save_lora_weights(tmp_path / "a", **{f"{component_of(pipe)}_lora_layers": state})
    denoiser.save_lora_adapter(tmp_path / "b", "plain")
    pipe.unload_lora_weights()
    for folder in ("a", "b"):
        if folder == "a":
            pipe.load_lora_weights(tmp_path / folder)
        else:
            denoiser.load_lora_adapter(tmp_path / folder, prefix=None, use_safetensors=True)
        torch.testing.assert_close(draw(pipe), plain, rtol=1e-4, atol=1e-5)
        pipe.unload_lora_weights()


def test_a_peft_model_guards_its_denoiser():
    model = get_peft_model(make_unet(), config())
    with pytest.raises(FeraError, match="no adapter can be fused"):
        model.get_base_model().fuse_lora()
    unet = model.unload()
    assert "fuse_lora" not in vars(unet)
