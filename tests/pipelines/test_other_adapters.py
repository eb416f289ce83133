"""A routed adapter into a base that holds adapters of other kinds already."""

import copy

import pytest
import torch
from adapter_cases import add_adapter, denoiser_of, draw, make_pipeline, write_adapter
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, OFTConfig, inject_adapter_in_model
from tiny import make_sd3_transformer, make_unet
from tuner_cases import predict, unet_inputs

import fera
from fera import FeraError
from fera.tuner import FeraConfig
from fera.tuner.fingerprint import check_fingerprint, fingerprint

pytest_plugins = ("pipeline_fixtures",)

OTHERS = {
    "LoHa": LoHaConfig(r=2, target_modules=["to_q", "to_k"], init_weights=False),
    "LoKr": LoKrConfig(r=2, target_modules=["to_q", "to_k"], init_weights=False),
    "IA3": IA3Config(target_modules=["to_q", "to_k"], feedforward_modules=[], init_ia3_weights=False),
    "OFT": OFTConfig(r=2, oft_block_size=0, target_modules=["to_q", "to_k"], init_weights=False),
    "DoRA": LoraConfig(r=2, target_modules=["to_q", "to_k"], use_dora=True, init_lora_weights=False),
    "a whole layer": LoraConfig(r=2, target_modules=["to_q"], modules_to_save=["conv_out"]),
    "routed DoRA": FeraConfig(target_modules=["to_q"], expert=LoraConfig(r=2, use_dora=True, init_lora_weights=False)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_their_weights_are_not_the_bases(kind):
    for make in (make_unet, make_sd3_transformer):
        if kind == "a whole layer" and make is make_sd3_transformer:
            continue
        expected = fingerprint(make())
        model = inject_adapter_in_model(copy.deepcopy(OTHERS[kind]), make(), "other")
        assert fingerprint(model) == expected
        check_fingerprint(model, expected)


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_the_order_does_not_matter(kind, tmp_path):
    folder = write_adapter("sd", tmp_path / "ink", seed=1)

    def other(pipe):
        torch.manual_seed(7)
        pipe.unet.add_adapter(copy.deepcopy(OTHERS[kind]), "other")

    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, folder, adapter_name="ink")
    inked = draw(pipe)
    other(pipe)
    fera.set_adapters(pipe, ["ink", "other"])
    expected = draw(pipe)
    assert not torch.allclose(expected, inked)

    pipe = make_pipeline("sd")
    other(pipe)
    alone = draw(pipe)
    fera.load_adapter(pipe, folder, adapter_name="ink")
    torch.testing.assert_close(draw(pipe), inked, rtol=1e-4, atol=1e-5)
    fera.set_adapters(pipe, ["ink", "other"])
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-5)
    fera.unload(pipe)
    fera.set_adapters(pipe, "other")
    assert torch.equal(draw(pipe), alone)


def ip_adapter(unet):
    """Weights of an IP-Adapter as its file holds them, for picture embeddings of 12 entries."""
    generator = torch.Generator().manual_seed(3)

    def weight(*shape):
        return torch.randn(shape, generator=generator) * 0.2

    layers = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    layers = {
        f"{2 * number + 1}.to_{part}_ip.weight": weight(
            unet.get_submodule(name.removesuffix(".processor")).inner_dim, 32
        )
        for number, name in enumerate(layers)
        for part in "kv"
    }
    proj = {
        "proj.weight": weight(128, 12),
        "proj.bias": weight(128),
        "norm.weight": weight(32),
        "norm.bias": weight(32),
    }
    return {"image_proj": proj, "ip_adapter": layers}


def test_an_ip_adapter_that_was_there_first(tmp_path):
    folder = write_adapter("sd", tmp_path / "ink", seed=1)
    inputs = unet_inputs(2) | {"added_cond_kwargs": {"image_embeds": [torch.randn(2, 1, 12)]}}
    first, second = make_unet(), make_unet()
    expected = fingerprint(first)
    fera.load_adapter(first, folder)
    first._load_ip_adapter_weights([ip_adapter(second)])
    second._load_ip_adapter_weights([ip_adapter(second)])
    pictured = predict(second, inputs)
    assert fingerprint(second) == expected
    fera.load_adapter(second, folder)
    torch.testing.assert_close(predict(second, inputs), predict(first, inputs), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(predict(second, inputs), pictured)


def test_a_base_with_a_projection_of_its_own():
    """Kolors: diffusers moves the base's projection away for an IP-Adapter's."""
    unet = make_unet(encoder_hid_dim=32, encoder_hid_dim_type="text_proj")
    expected = fingerprint(unet)
    unet._load_ip_adapter_weights([ip_adapter(unet)])
    assert fingerprint(unet) == expected


def test_another_base_is_refused_all_the_same(tmp_path):
    folder = write_adapter("sd", tmp_path / "ink", seed=1)
    pipe = make_pipeline("sd")
    denoiser_of(pipe).add_adapter(copy.deepcopy(OTHERS["LoHa"]), "other")
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(1.5)
    with pytest.raises(FeraError, match="another base"):
        fera.load_adapter(pipe, folder)
    add_adapter(pipe, "ink")
