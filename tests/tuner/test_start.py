import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from tuner_cases import ATTENTION, unet_inputs

import fera
from fera import FeraConfig, FrequencyBands
from fera.errors import FeraError
from fera.method.router import gate_entropy


def noisy(count=256, seed=0):
    """Flow-matched latents of flat colours at levels from clean to noise."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.rand(count, generator=generator)
    clean = torch.randn(count, 4, 1, 1, generator=generator).expand(-1, -1, 8, 8)
    noise = torch.randn(clean.shape, generator=generator)
    at = level.view(-1, 1, 1, 1)
    return (1 - at) * clean + at * noise, level


def adapted(tiny_unet, **settings):
    torch.manual_seed(0)
    return get_peft_model(tiny_unet(), FeraConfig(r=2, target_modules=ATTENTION, **settings))


@pytest.mark.parametrize("router_input", fera.method.router_input.ROUTER_INPUTS)
def test_the_forward_routes_as_the_partition_says(tiny_unet, router_input):
    model = adapted(tiny_unet, router_input=router_input)
    latents, levels = noisy()
    gates = fera.start_router(model, latents, levels, entropy=0.5)
    assert float(gate_entropy(gates).mean()) == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(gates.mean(dim=0), torch.full((3,), 1 / 3), rtol=0, atol=0.05)
    inputs = {**unet_inputs(4), "sample": latents[:4], "timestep": 1000 * levels[:4]}
    with fera.trace(model) as steps:
        model(**inputs)
    torch.testing.assert_close(steps[0].gates, gates[:4], rtol=0, atol=1e-5)
    torch.testing.assert_close(steps[0].indicator, FrequencyBands().indicator(latents[:4]))


def test_windows_lie_along_the_timestep_where_it_is_read(tiny_unet):
    latents, levels = noisy()
    alone = fera.start_router(adapted(tiny_unet, router_input="timestep"), latents, levels)
    both = fera.start_router(adapted(tiny_unet, router_input="shares+timestep"), latents, levels)
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-5)
    assert alone[levels.argsort()].argmax(dim=1).diff().ge(0).all()


def test_the_output_is_the_bases_still(tiny_unet):
    unet = tiny_unet()
    before = unet(**unet_inputs(2))[0]
    inject_adapter_in_model(FeraConfig(r=2, target_modules=ATTENTION), unet)
    fera.start_router(unet, *noisy())
    assert torch.equal(unet(**unet_inputs(2))[0], before)


def test_a_started_router_is_saved(tiny_unet, tmp_path):
    model = adapted(tiny_unet, router_input="log_energies+timestep")
    fera.start_router(model, *noisy())
    model.save_pretrained(tmp_path)
    from peft import PeftModel

    again = PeftModel.from_pretrained(tiny_unet(), tmp_path)
    with fera.trace(model) as steps:
        model(**unet_inputs(3))
    with fera.trace(again) as others:
        again(**unet_inputs(3))
    assert torch.equal(steps[0].gates, others[0].gates)


@pytest.mark.parametrize("router", ["uniform", "rank_mask"])
def test_fixed_routers_train_save_and_load_without_weights(tiny_unet, tmp_path, router):
    model = adapted(tiny_unet, router=router, router_input="timestep", num_experts=4)
    assert not [name for name, _ in model.named_parameters() if ".router." in name]
    with fera.trace(model) as steps:
        model(**unet_inputs(2)).sample.sum().backward()
    model.save_pretrained(tmp_path)
    from peft import PeftModel

    again = PeftModel.from_pretrained(tiny_unet(), tmp_path)
    with fera.trace(again) as others:
        again(**unet_inputs(2))
    assert torch.equal(steps[0].gates, others[0].gates)
    with pytest.raises(FeraError, match="is fixed: there is nothing to start"):
        fera.start_router(model, *noisy())


def test_a_uniform_router_is_a_plain_lora(tiny_unet):
    """E experts of rank r at the default alpha: a LoRA of rank E r at scale 1."""
    model = adapted(tiny_unet, router="uniform")
    layer = model.base_model.model.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    model(**unet_inputs(2))
    plain = layer.base_layer(seen["x"]) + layer.lora_B["default"](layer.lora_A["default"](seen["x"]))
    torch.testing.assert_close(seen["y"], plain, rtol=1e-4, atol=1e-5)


def test_a_router_that_reads_the_timestep_needs_one():
    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.to_q = torch.nn.Linear(4, 4)

        def forward(self, sample, timestep=None):
            return self.to_q(sample.mean(dim=(2, 3)))

    fera.register_denoiser(Denoiser, latent="sample")
    model = Denoiser()
    inject_adapter_in_model(FeraConfig(r=2, target_modules=["to_q"], router_input="timestep"), model)
    with pytest.raises(FeraError, match="the router reads the timestep, but .* without 'timestep'"):
        model(torch.randn(2, 4, 8, 8))


def test_errors_name_what_is_missing(tiny_unet):
    with pytest.raises(FeraError, match="no routed adapter 'default'"):
        fera.start_router(tiny_unet(), *noisy())
    with pytest.raises(FeraError, match="no routed adapter 'ink'"):
        fera.start_router(adapted(tiny_unet), *noisy(), adapter_name="ink")
    with pytest.raises(FeraError, match="router='rank_mask' masks by the timestep"):
        FeraConfig(router="rank_mask")
    with pytest.raises(FeraError, match="router must be one of soft, uniform, rank_mask, gradient, got 'hard'"):
        FeraConfig(router="hard")
    with pytest.raises(FeraError, match="needs indicator='bands'"):
        FeraConfig(router_input="log_energies", indicator="released")
