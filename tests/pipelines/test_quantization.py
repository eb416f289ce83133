"""Adapters on quantized bases: what runs on a CPU runs here; loading with bitsandbytes asks for a GPU."""

import pytest
import torch
from diffusers import BitsAndBytesConfig, TorchAoConfig, UNet2DConditionModel
from peft import get_peft_model
from peft.tuners.lora.layer import LoraLayer
from tiny import make_sd_pipeline, make_unet
from torch import nn
from tuner_cases import ATTENTION, UNET, adapter_gradients, config, fill, predict, step

import fera
from fera import FeraError
from fera.tuner.fingerprint import check_fingerprint, fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    make_unet().save_pretrained(folder)
    return folder


def with_torchao(folder):
    """As a user loads it."""
    quantization = pytest.importorskip("torchao.quantization")
    return UNet2DConditionModel.from_pretrained(
        folder, quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig()), torch_dtype=torch.float32
    )


def with_bitsandbytes(bits, **settings):
    """diffusers loads with bitsandbytes on a GPU only; bitsandbytes' layers run on a CPU too."""

    def load(folder):
        layers = pytest.importorskip("bitsandbytes").nn
        layer_class = layers.Linear8bitLt if bits == 8 else layers.Linear4bit
        model = UNet2DConditionModel.from_pretrained(folder)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                quantized = layer_class(layer.in_features, layer.out_features, layer.bias is not None, **settings)
                quantized.load_state_dict(layer.state_dict())
                # Else, on CPUs with AVX-512 BF16 only, its 4-bit layers repack at evaluation and fail on rows
                # shorter than a block of 64, as a tiny UNet's are.
                quantized.support_avx512bf16_for_cpu = False
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, quantized.requires_grad_(False).to("cpu"))
        setattr(model, f"is_loaded_in_{bits}bit", True)  # as diffusers marks it, and PEFT looks it up
        return model.eval()

    return load


KINDS = {
    "torchao int8": (with_torchao, "TorchaoLoraLinear"),
    "bitsandbytes int8": (with_bitsandbytes(8, has_fp16_weights=False), "Linear8bitLt"),
    "bitsandbytes nf4": (with_bitsandbytes(4, quant_type="nf4", compute_dtype=torch.float32), "Linear4bit"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def base(kind, folder):
    return KINDS[kind][0](folder)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" not in name}


@pytest.mark.filterwarnings("ignore:TorchaoLoraLinear was instantiated without")  # which is about merging
class TestQuantizedBase:
    def test_is_routed(self, base, kind):
        inputs = UNET.inputs(3)
        with torch.no_grad():
            quantized, exact = predict(base, inputs), predict(make_unet(), inputs)
            assert (quantized - exact).abs().max() > 0
            model = get_peft_model(base, config())
            assert torch.equal(predict(model, inputs), quantized)
            fill(model)
            with fera.trace(model) as steps:
                routed = predict(model, inputs)
            plain = fill(get_peft_model(make_unet(), config()))
            with fera.trace(plain) as plain_steps:
                expected = predict(plain, inputs)
        layers = {type(module).__name__ for module in model.modules() if isinstance(module, LoraLayer)}
        assert layers == {KINDS[kind][1]}
        assert torch.equal(steps[0].gates, plain_steps[0].gates)
        # Quantizing costs the adapted model about what it costs the base.
        assert (routed - expected).norm() < 3 * (quantized - exact).norm() < (routed - quantized).norm()

    def test_trains(self, base):
        model = get_peft_model(base, config())
        before, inputs = weights(base), UNET.inputs(2)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(3):
            losses.append(step(model, inputs))
            optimizer.step()
        gradients = adapter_gradients(model)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        for part in (".lora_A.", ".lora_B.", "fera.router."):
            assert any(part in name and gradient.any() for name, gradient in gradients.items())
        assert losses[-1] < losses[0]
        after = weights(base)
        kept = [name for name in before if "fera.router." not in name]
        assert kept and all(torch.equal(_plain(before[name]), _plain(after[name])) for name in kept)

    def test_saved_and_loaded_between_quantized_and_exact_bases(self, base, kind, folder, tmp_path):
        fill(get_peft_model(base, config())).save_pretrained(tmp_path / "quantized")
        fill(get_peft_model(make_unet(), config()), 1).save_pretrained(tmp_path / "exact")
        for name in ("quantized", "exact"):
            for unet in (make_unet(), KINDS[kind][0](folder)):
                pipe = make_sd_pipeline()
                pipe.unet = unet
                fera.load_adapter(pipe, tmp_path / name)
                with torch.no_grad(), fera.trace(pipe) as steps:
                    assert predict(pipe.unet, UNET.inputs(1)).isfinite().all()
                assert len(steps) == 1

    def test_has_the_fingerprint_of_its_exact_twin(self, base):
        exact = make_unet()
        check_fingerprint(base, fingerprint(exact))
        check_fingerprint(exact, fingerprint(base))
        with torch.no_grad():
            exact.conv_in.weight.add_(1)
        with pytest.raises(FeraError, match="trained on another base"):
            check_fingerprint(base, fingerprint(exact))

    def test_unloading_gives_the_base_back(self, base):
        inputs = UNET.inputs(2)
        with torch.no_grad():
            before = predict(base, inputs)
            model = fill(get_peft_model(base, config()))
            assert not torch.equal(predict(model, inputs), before)
            assert torch.equal(predict(model.unload(), inputs), before)


def _plain(tensor):
    return tensor.dequantize() if hasattr(tensor, "qdata") else tensor


def test_a_quantized_layer_that_cannot_be_gated_is_named(monkeypatch):
    """PEFT has LoRA layers for more kinds of quantized layers; those that know no variants would not be routed."""
    from peft.tuners.lora import model as lora_model

    class AwqLoraLinear(nn.Module, LoraLayer):
        def __init__(self, base_layer, adapter_name, config, **kwargs):
            super().__init__()
            LoraLayer.__init__(self, base_layer)
            self._active_adapter = adapter_name
            self.update_layer(adapter_name, config.r, lora_alpha=config.lora_alpha, config=config)

    monkeypatch.setattr(
        lora_model, "dispatch_awq", lambda target, name, config, **kwargs: AwqLoraLinear(target, name, config)
    )

    class QuantizedLinear(nn.Linear):
        pass

    unet = make_unet()
    for module in unet.modules():
        if type(module) is nn.Linear:
            module.__class__ = QuantizedLinear
    before, inputs = predict(unet, UNET.inputs(1)), UNET.inputs(1)
    with pytest.raises(
        FeraError, match="attn1.to_. is a QuantizedLinear, whose LoRA layer .*cannot be routed; leave it out"
    ):
        get_peft_model(unet, config())
    assert torch.equal(predict(unet, inputs), before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}],
    ids=["8-bit", "4-bit"],
)
def test_a_base_that_diffusers_loads_with_bitsandbytes(settings, folder):
    pytest.importorskip("bitsandbytes")
    base = UNet2DConditionModel.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**settings))
    model = fill(get_peft_model(base, config(target_modules=ATTENTION)))
    inputs = {name: value.to("cuda") for name, value in UNET.inputs(2).items()}
    with fera.trace(model) as steps:
        assert step(model, inputs).isfinite()
    assert len(steps) == 1
    assert all(gradient.isfinite().all() for gradient in adapter_gradients(model).values())
