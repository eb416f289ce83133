"""Soft prompts: the denoiser sees learned vectors before the text, as if they had been the pipeline's own."""

import pytest
import torch
from adapter_cases import add_adapter, draw, make_pipeline
from models import aura_flow, flux, pixart, qwen_image, sana
from peft import get_peft_model, inject_adapter_in_model
from tiny import make_unet
from tuner_cases import CASES, config, find_gate, predict, unet_inputs

import fera
from fera import FeraConfig, FeraError
from fera.adapters.inspection import describe
from fera.export.writing import export_lora
from fera.models.components import denoisers

COUNT = 3
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


def adapted(pipe, count=COUNT, **settings):
    """The pipeline with an adapter that adds nothing but a soft prompt, and the prompt, shape (1, V, D)."""
    name, denoiser = next(iter(denoisers(pipe).items()))
    pipe.set_progress_bar_config(disable=True)
    inject_adapter_in_model(FeraConfig(r=2, num_virtual_tokens=count, component=name, **settings), denoiser)
    denoiser.eval()
    vectors = find_gate(denoiser).soft_prompt["default"]
    with torch.no_grad():
        vectors.normal_(std=5, generator=torch.Generator().manual_seed(0))
    return pipe, vectors.detach()[None].clone()


def longer(embeddings, vectors):
    return torch.cat([vectors.expand(len(embeddings), -1, -1), embeddings], dim=1)


def wide(mask):
    return torch.cat([mask.new_ones(len(mask), COUNT), mask], dim=1)


def sd(pipe, vectors):
    given, other = pipe.encode_prompt("a red rocket", "cpu", 1, True)
    call = {"height": 16, "width": 16, "guidance_scale": 2.0, "num_inference_steps": 2, "output_type": "latent"}
    ours = {"prompt": "a red rocket"}
    return call, ours, {"prompt_embeds": longer(given, vectors), "negative_prompt_embeds": longer(other, vectors)}


def sd3(pipe, vectors):
    given, _, pooled, _ = pipe.encode_prompt("a red rocket", None, None, do_classifier_free_guidance=False)
    call = {"height": 16, "width": 16, "guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "latent"}
    return call, {"prompt": "a red rocket"}, {"prompt_embeds": longer(given, vectors), "pooled_prompt_embeds": pooled}


def of_flux(pipe, vectors):
    given, pooled, _ = pipe.encode_prompt("a red rocket", None)
    call = {name: value for name, value in flux.CALL.items() if name != "prompt"}
    return call, {"prompt": "a red rocket"}, {"prompt_embeds": longer(given, vectors), "pooled_prompt_embeds": pooled}


def of_pixart(pipe, vectors):
    given, mask, _, _ = pipe.encode_prompt("a red rocket", False, clean_caption=False)
    assert not mask.all(), "the caption is padded"
    call = {name: value for name, value in pixart.CALL.items() if name != "prompt"} | {"guidance_scale": 1.0}
    theirs = {"prompt_embeds": longer(given, vectors), "prompt_attention_mask": wide(mask), "negative_prompt": None}
    return call, {"prompt": "a red rocket"}, theirs


def given(case):
    def call_of(pipe, vectors):
        text = {name: value for name, value in case.CALL.items() if "prompt_" in name}
        call = {name: value for name, value in case.CALL.items() if name not in text}
        theirs = {
            name: wide(value) if name.endswith("mask") else longer(value, vectors) for name, value in text.items()
        }
        return call, text, theirs

    return call_of


PIPELINES = {
    "sd": (lambda: make_pipeline("sd"), sd),
    "sd3": (lambda: make_pipeline("sd3"), sd3),
    "flux": (flux.make_pipeline, of_flux),
    "pixart": (pixart.make_pipeline, of_pixart),
    "sana": (sana.make_pipeline, given(sana)),
    "aura-flow": (aura_flow.make_pipeline, given(aura_flow)),
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_it_is_the_pipeline_with_longer_embeddings(kind):
    make, call_of = PIPELINES[kind]
    pipe, vectors = adapted(make())
    call, ours, theirs = call_of(pipe, vectors)

    def latent(pipe, arguments):
        return pipe(**call, **arguments, generator=torch.Generator().manual_seed(1), return_dict=False)[0]

    drawn = latent(pipe, ours)
    plain = make()
    plain.set_progress_bar_config(disable=True)
    error, effect = ((drawn - latent(plain, one)).abs().max() for one in (theirs, ours))
    # AuraFlow's tiny model hardly heeds its text.
    assert error < 2e-4 and error < effect / 10
    fera.unload(pipe)
    assert torch.equal(latent(pipe, ours), latent(plain, ours))


def test_arguments_by_position_and_gradients():
    model = get_peft_model(make_unet(), FeraConfig(r=2, num_virtual_tokens=2, target_modules=["to_q"]))
    inputs = unet_inputs(2)
    one, other = model(**inputs).sample, model(*inputs.values()).sample
    assert torch.equal(one, other)
    one.square().mean().backward()
    assert find_gate(model).soft_prompt["default"].grad.abs().sum() > 0
    assert find_gate(model).soft_prompt["default"].shape == (2, 32)


def test_two_adapters_have_both_and_each_is_saved_with_its_own(tmp_path):
    pipe, first = adapted(make_pipeline("sd"))
    alone = draw(pipe)
    add_adapter(pipe, "other", num_virtual_tokens=1)
    fera.set_adapters(pipe, ["default", "other"])
    both = draw(pipe)
    fera.save_adapter(pipe, tmp_path / "default")
    fera.save_adapter(pipe, tmp_path / "other", adapter_name="other")
    again = make_pipeline("sd")
    fera.load_adapter(again, tmp_path / "default")
    assert torch.equal(draw(again), alone)
    fera.load_adapter(again, tmp_path / "other", adapter_name="other")
    fera.set_adapters(again, ["default", "other"])
    assert torch.equal(draw(again), both) and not torch.allclose(both, alone)
    fera.load_adapter(again, tmp_path / "default", adapter_name="default", hotswap=True)
    fera.set_adapters(again, "default")
    assert torch.equal(draw(again), alone)
    fera.set_adapters(pipe, [])
    assert torch.equal(draw(pipe), draw(make_pipeline("sd")))


def test_inspect_and_refusals_name_it(tmp_path):
    pipe, vectors = adapted(make_pipeline("sd"), router="gradient")
    fera.save_adapter(pipe, tmp_path / "adapter")
    described = describe(tmp_path / "adapter")
    assert described["settings"]["num_virtual_tokens"] == COUNT
    assert described["parameters"]["soft_prompt"] == vectors.numel()
    with pytest.raises(FeraError, match="soft prompt of 3 vectors, which a plain LoRA cannot hold"):
        fera.merge(pipe)
    with pytest.raises(FeraError, match="soft prompt of 3 vectors"):
        export_lora(tmp_path / "adapter", tmp_path / "out", None)
    with pytest.raises(FeraError, match="no adapter can be fused"):
        pipe.unet.fuse_lora()


def test_denoisers_that_order_their_text_refuse_it():
    pipe = qwen_image.make_pipeline()
    before = {name: type(module) for name, module in pipe.transformer.named_modules()}
    with pytest.raises(FeraError, match="before the text of a QwenImageTransformer2DModel; it can for .*Flux"):
        pipe.transformer.add_adapter(FeraConfig(num_virtual_tokens=2))
    assert {name: type(module) for name, module in pipe.transformer.named_modules()} == before


def test_a_call_without_text_and_numbers_out_of_range_are_clear_errors():
    unet = make_unet(
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), mid_block_type=None
    )
    unet.add_adapter(FeraConfig(num_virtual_tokens=2, target_modules=["conv1"]))
    with pytest.raises(FeraError, match="this call of the UNet2DConditionModel has no encoder_hidden_states"):
        unet(torch.randn(1, 4, 8, 8), 5, None)
    with pytest.raises(FeraError, match="num_virtual_tokens must be an integer of at least 0"):
        FeraConfig(num_virtual_tokens=-1)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_it_compiles_without_a_break(case):
    torch._dynamo.reset()
    model = inject_adapter_in_model(config(num_virtual_tokens=2), case.model(**SMALL[case.name]))
    inputs = [case.inputs(2, seed=seed) for seed in range(2)]
    with torch.no_grad():
        expected = [predict(model, one) for one in inputs]
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        for one, right in zip(inputs, expected, strict=True):
            torch.testing.assert_close(predict(compiled, one), right, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
