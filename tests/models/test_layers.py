"""Which layers an adapter goes into: patterns to names, and names to what PEFT adapts."""

import pytest
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from tiny import make_sd3_transformer, make_unet
from torch import nn

import fera
from fera import FeraConfig, FeraError
from fera.models.layers import adaptable, by_name
from models import flux


def adapted(model):
    return {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def chosen(model, *arguments, **keywords):
    """What PEFT adapts, with LoRA and with routed experts."""
    settings = fera.choose_layers(model, *arguments, **keywords)
    routed = inject_adapter_in_model(FeraConfig(r=1, **settings), type(model).from_config(model.config))
    plain = inject_adapter_in_model(LoraConfig(r=1, **settings), model)
    assert adapted(plain) == adapted(routed)
    return adapted(plain)


def linear(model):
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_all_linear_layers():
    model = make_sd3_transformer()
    expected = linear(model)
    assert chosen(model, ["all-linear"]) == expected and "proj_out" in expected


def test_every_layer():
    model = make_unet()
    expected = set(adaptable(model))
    assert chosen(model, ["*"]) == expected > linear(make_unet())


def test_the_defaults_in_some_blocks():
    model = flux.make_transformer(num_layers=4, num_single_layers=3)
    found = chosen(model, blocks=["2-3"])
    assert {".".join(name.split(".")[:2]) for name in found} == {
        "transformer_blocks.2",
        "transformer_blocks.3",
        "single_transformer_blocks.2",
    }
    assert len(found) == 2 * (8 + 4) + (3 + 2)


def test_the_attention_alone():
    model = flux.make_transformer(num_layers=2)
    expected = {name for name in linear(model) if ".attn." in name}
    assert chosen(model, ["attention"]) == expected
    assert chosen(make_unet(), ["attention", "conv1"]) == {
        name for name in adaptable(make_unet()) if name.endswith((".conv1", ".to_q", ".to_k", ".to_v", ".to_out.0"))
    }


def test_the_defaults_of_a_transformer():
    """The linear layers of the blocks but for modulation; not the last one, which has a name as theirs."""
    model = flux.make_transformer()
    expected = {name for name in linear(model) if "blocks." in name and ".norm" not in name}
    found = adapted(inject_adapter_in_model(FeraConfig(r=1), model))
    assert found == expected
    assert "single_transformer_blocks.0.proj_out" in found and "proj_out" not in found


def test_the_defaults_of_a_unet():
    """What studies/layers.toml compares, inside of the blocks."""
    model = make_unet()
    expected = {name for name in adaptable(model) if "block" in name and ".ff." not in name}
    assert adapted(inject_adapter_in_model(FeraConfig(r=1), model)) == expected


def test_a_name_that_is_the_end_of_anothers():
    """PEFT takes "proj_out" for the single blocks' too."""
    model = flux.make_transformer(num_single_layers=2)
    assert "single_transformer_blocks.1.proj_out" in adaptable(model)
    assert chosen(model, ["proj_out"], exclude_modules=["single_transformer_blocks.*"]) == {"proj_out"}


def test_not_the_text_stream():
    model = flux.make_transformer(num_layers=2)
    found = chosen(model, exclude_modules=["add_*_proj", "to_add_out", "ff_context.*"])
    assert found and not any("add" in name or "context" in name for name in found)
    assert len(found) == 2 * (4 + 2) + (3 + 2)


@pytest.mark.parametrize(
    ("choice", "message"),
    {
        "target": ({"target_modules": ["to_q", "to_x"]}, "`target_modules` that match nothing: to_x; .*to_q"),
        "excluded": ({"exclude_modules": ["attn9.*"]}, "`exclude_modules` that match nothing: attn9"),
        "block": ({"blocks": ["5-9"]}, r"`blocks` that match nothing: 5-9; .*down_blocks\.0-1.*mid_block"),
        "none": (
            {"blocks": ["conv_in", "mid_block"], "exclude_modules": ["mid_block.*"]},
            "`blocks` that match nothing",
        ),
        "nothing left": ({"blocks": ["mid_block"], "exclude_modules": ["mid_block.*"]}, "no layer of UNet2D.* is left"),
        "no pattern": ({"blocks": ["(a|b)"]}, "`blocks`: .* is no name or pattern"),
    }.values(),
    ids=lambda value: None,
)
def test_mistakes(choice, message):
    with pytest.raises(FeraError, match=message):
        fera.choose_layers(make_unet(), **choice)


def test_the_first_pattern_counts():
    names = ["blocks.0.a", "blocks.1.a", "blocks.1.b"]
    assert by_name({"blocks.1.*": 4, "a": 2, "b": 1}, names, "rank_pattern") == {
        "blocks.1.a": 4,
        "blocks.1.b": 4,
        "blocks.0.a": 2,
    }
    with pytest.raises(FeraError, match="`rank_pattern` that match nothing: c; adapted are: a, b"):
        by_name({"c": 1}, names, "rank_pattern")


def test_a_second_adapter_is_placed_beside_the_first():
    model = make_unet()
    before = set(adaptable(model))
    inject_adapter_in_model(FeraConfig(r=1), model, "first")
    assert set(adaptable(model)) == before
