"""Runs on quantized bases, as far as bitsandbytes works on a CPU: all of it but speed."""

import sys

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from tiny import make_sd3_transformer, make_unet
from training_cases import log_of, run_config
from tuner_cases import SD3, UNET, adapter_gradients, config, fill, predict, step

import fera
from fera import FeraError
from fera.cli.main import main
from fera.pipelines.base import load_base
from fera.pipelines.quantization import quantize
from fera.pipelines.quantization_kinds import KINDS
from fera.training import train
from fera.training.trainer import Trainer

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast")
CPU = torch.device("cpu")
LAYERS = {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}
OTHERS = {"fp8": "Fp8Linear", "quanto-int4": "QLinear"} | dict.fromkeys(
    ("torchao-int8", "torchao-fp8"), "TorchaoLinear"
)


def linear_layers(model):
    return {type(module).__name__ for module in model.modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("quantization", LAYERS)
@pytest.mark.parametrize(("make", "case"), [(make_unet, UNET), (make_sd3_transformer, SD3)])
def test_quantized_denoiser_predicts_nearly_the_same(make, case, quantization):
    model, exact = make(), make()
    quantize(model, quantization, CPU)
    assert linear_layers(model) == {LAYERS[quantization]}
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in model.parameters())
    assert model.num_parameters() == exact.num_parameters() and model.dtype == torch.float32
    with torch.no_grad():
        got, expected = predict(model, case.inputs(2)), predict(exact, case.inputs(2))
    error = (got - expected).norm() / expected.norm()
    assert 0 < error < (0.02 if quantization == "8bit" else 0.2)


@pytest.mark.parametrize("quantization", LAYERS)
def test_weights_are_those_of_bitsandbytes(quantization):
    """Per layer against bitsandbytes' own functions; what is no linear layer stays."""
    from bitsandbytes import functional

    model, exact = make_unet(), make_unet()
    quantize(model, quantization, CPU)
    for name, layer in exact.named_modules():
        quantized = model.get_submodule(name)
        if isinstance(layer, torch.nn.Linear):
            if quantization == "4bit":
                expected = functional.quantize_4bit(layer.weight.detach(), quant_type="nf4")[0]
            else:
                expected = functional.int8_vectorwise_quant(layer.weight.detach().half())[0]
            assert torch.equal(quantized.weight, expected)
            if layer.bias is not None:
                assert torch.equal(quantized.bias, layer.bias)
        elif isinstance(layer, torch.nn.Conv2d | torch.nn.GroupNorm):
            assert torch.equal(quantized.weight, layer.weight)


@pytest.mark.parametrize(
    ("quantization", "mixed_precision"),
    [
        *(("8bit", "no"), ("4bit", "no"), ("4bit", "bf16"), ("fp8", "no"), ("fp8", "bf16"), ("quanto-int4", "bf16")),
        *(("torchao-int8", "bf16"), ("torchao-fp8", "no")),
    ],
)
def test_adapter_trains_and_loads_onto_the_exact_base(
    tiny_sd_dir, image_folder, tmp_path, monkeypatch, quantization, mixed_precision
):
    if (module := KINDS[quantization].module) and module != "bitsandbytes":
        pytest.importorskip(module)
    seen = {}
    finish = Trainer.finish

    def look(trainer, seconds):
        denoiser = trainer._setup.denoiser
        seen["layers"] = {type(module.base_layer).__name__ for module in denoiser.modules() if _is_adapted(module)}
        seen["dtypes"] = {parameter.dtype for parameter in trainer._trained}
        return finish(trainer, seconds)

    monkeypatch.setattr(Trainer, "finish", look)
    settings = run_config(
        tiny_sd_dir,
        image_folder,
        tmp_path / "run",
        quantization=quantization,
        data={"validation_fraction": 0.25},
        train={"steps": 2, "consistency_weight": 0.1, "mixed_precision": mixed_precision},
        validation={"prompts": ["a red rocket"], "num_inference_steps": 1},
    )
    summary = train(settings)
    assert seen == {"layers": {(LAYERS | OTHERS)[quantization]}, "dtypes": {torch.float32}}
    assert len(log_of(settings, "loss")) == 2 and summary.held_out_loss_after > 0
    assert (tmp_path / "run" / "samples" / "step-000002.png").exists()
    if quantization in OTHERS:  # goes on, and draws with the base held so
        train(settings.model_copy(update={"train": settings.train.model_copy(update={"steps": 3})}), resume=True)
        assert len(log_of(settings, "loss")) == 3
        output = ["--quantization", quantization, "--steps", "2", "--output", str(tmp_path / "out")]
        assert main(["generate", "a red rocket", "--adapter", str(tmp_path / "run"), *output]) == 0
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert all(value.any() for key, value in weights.items() if "experts_B" in key), "B starts at zero"

    pipe = load_base(str(tiny_sd_dir))
    inputs = UNET.inputs(1)
    with torch.no_grad():
        before = predict(pipe.unet, inputs)
        fera.load_adapter(pipe, tmp_path / "run")
        assert linear_layers(pipe.unet) == {"Linear"}
        assert not torch.equal(predict(pipe.unet, inputs), before)


def _is_adapted(module):
    return hasattr(module, "base_layer") and isinstance(module.base_layer, torch.nn.Linear)


@pytest.mark.parametrize("quantization", LAYERS)
def test_gradients_are_those_of_the_dequantized_base(quantization):
    """Also after a forward in evaluation mode, where bitsandbytes repacks 4-bit weights on some CPUs."""
    model, exact = make_unet(), make_unet()
    quantize(model, quantization, CPU)
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            # Each column of the identity gives one of the weights, as a forward has them.
            bias = 0 if layer.bias is None else layer.bias
            exact.get_submodule(name).weight.data = (layer(torch.eye(layer.in_features)) - bias).T.contiguous()
    assert not any(getattr(layer, "support_avx512bf16_for_cpu", False) for layer in model.modules())
    found = {}
    for unet in (model, exact):
        adapted = fill(get_peft_model(unet, config()))
        predict(adapted.eval(), UNET.inputs(2))
        step(adapted.train(), UNET.inputs(2))
        found[unet] = adapter_gradients(adapted)
    assert found[exact].keys() == found[model].keys()
    for name, gradient in found[exact].items():
        error = (found[model][name] - gradient).norm() / gradient.norm()
        assert error < (0.05 if quantization == "8bit" else 1e-3), name  # 8 bits round the activations too


def test_refusals(monkeypatch, tmp_path, image_folder):
    model = make_unet()
    quantize(model, "none", CPU)
    assert linear_layers(model) == {"Linear"}
    quantize(model, "4bit", CPU)
    with pytest.raises(FeraError, match="quantized already"):
        quantize(model, "8bit", CPU)
    with pytest.raises(ValueError, match="adapter.full trains the base's weights, which quantization freezes"):
        run_config(tmp_path, image_folder, tmp_path / "run", quantization="4bit", adapter={"full": True})
    with pytest.raises(ValueError, match="quantization is for adapters of LoRAs, and this one is of LOHA"):
        adapter = {"expert": {"peft_type": "LOHA"}}
        run_config(tmp_path, image_folder, tmp_path / "run", quantization="8bit", adapter=adapter)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    settings = run_config(tmp_path / "nothing", image_folder, tmp_path / "run", quantization="4bit")
    with pytest.raises(FeraError, match=r"needs bitsandbytes.*pip install 'fera\[quantized\]'"):
        train(settings)


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", LAYERS)
def test_on_a_gpu(quantization):
    model = make_unet()
    quantize(model, quantization, torch.device("cuda"))
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    inputs = {name: value.to("cuda") for name, value in UNET.inputs(2).items()}
    adapted = fill(get_peft_model(model, config()).to("cuda"))
    assert step(adapted, inputs).isfinite()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in adapter_gradients(adapted).values())


@pytest.mark.parametrize("quantization", LAYERS)
@pytest.mark.parametrize(
    ("held", "dtype"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)],
)
def test_weights_straight_from_files_are_those_of_a_loaded_model(tmp_path, quantization, held, dtype):
    make_sd3_transformer().to(held).save_pretrained(tmp_path)
    load = type(make_sd3_transformer()).from_pretrained
    loaded, straight = load(tmp_path, torch_dtype=dtype), load(tmp_path, torch_dtype=held)
    loaded.register_to_config(_name_or_path="elsewhere")
    quantize(loaded, quantization, CPU)
    quantize(straight, quantization, CPU, dtype)
    expected = loaded.state_dict()
    assert straight.state_dict().keys() == expected.keys()
    for name, value in straight.state_dict().items():
        assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name
