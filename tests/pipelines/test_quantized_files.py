"""Denoisers in files of few bits: GGUF, and 8-bit floats with scales."""

import gguf
import numpy as np
import original_names
import pytest
import torch
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from torch import nn
from trained_cases import z_image
from training_cases import log_of, run_config

import fera
from fera.cli.main import main
from fera.errors import FeraError
from fera.pipelines.base import load_base
from fera.pipelines.memory import held
from fera.pipelines.scaled_weights import unscaled
from fera.pipelines.skeletons import skeletons
from fera.training import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("z-image")
    z_image.make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights(folder):
    return original_names.z_image(z_image.make_pipeline().transformer)


def write_gguf(path, weights, kind):
    """As converters write it: matrices in few bits where blocks fit, and the rest in float32.

    Returns what GGUF's own code makes of each.
    """
    writer, exact = gguf.GGUFWriter(path, "lumina2"), {}
    for key, weight in weights.items():
        name, values = key.removeprefix("model.diffusion_model."), weight.float().numpy()
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            exact[key] = torch.from_numpy(np.array(gguf.quants.dequantize(packed, kind)))
        else:
            writer.add_tensor(name, values)
            exact[key] = weight.float()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return exact


def layers(model):
    return [layer for layer in model.modules() if type(layer).__name__ == "GGUFLinear"]


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q5_1], ids=lambda kind: kind.name)
def test_gguf_computes_and_learns_as_what_gguf_itself_makes_dense(kind, weights, folder, tmp_path):
    exact = write_gguf(tmp_path / "few.gguf", weights, kind)
    save_file(exact, tmp_path / "dense.safetensors")
    few = load_base(f"{tmp_path / 'few.gguf'}|{folder}").transformer
    dense = load_base(f"{tmp_path / 'dense.safetensors'}|{folder}").transformer
    assert len(layers(few)) > 10
    size = sum(parameter.nbytes for parameter in few.parameters())
    assert held(few, torch.float32).device_bytes == size < sum(weight.nbytes for weight in dense.parameters()) / 2
    inputs = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    names = [name for name, layer in few.named_modules() if layer in layers(few) and layer.in_features == 32]
    for name in names[:4]:
        layer, twin = few.get_submodule(name), dense.get_submodule(name)
        held_as = dequantize_gguf_tensor(layer.weight).float()
        # diffusers multiplies numbers and scales in half precision.
        assert ((held_as - twin.weight).abs() <= 2**-9 * twin.weight.abs().max()).all()
        twin.weight.data = held_as
        x, same, saved = inputs.clone().requires_grad_(), inputs.clone().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            output = layer(x)
        expected = twin(same)
        torch.testing.assert_close(output, expected)
        output.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(x.grad, same.grad)
        assert not any(tensor.shape == twin.weight.shape for tensor in saved)


def test_a_gguf_base_trains_resumes_and_draws(weights, folder, image_folder, tmp_path, capsys):
    write_gguf(tmp_path / "few.gguf", weights, Kind.Q8_0)
    base = f"{tmp_path / 'few.gguf'}|{folder}"
    settings = {"train": {"steps": 2}, "adapter": {"r": 2}, "data": {"resolution": 32}}
    config = run_config(base, image_folder, tmp_path / "run", **settings)
    train(config)
    assert len(log_of(config, "loss")) == 2
    train(config.model_copy(update={"train": config.train.model_copy(update={"steps": 3})}), resume=True)
    assert len(log_of(config, "loss")) == 3
    output = ["--steps", "2", "--height", "32", "--width", "32", "--output", str(tmp_path / "out")]
    assert main(["generate", "a red rocket", "--adapter", str(tmp_path / "run"), *output]) == 0
    assert main(["inspect", str(tmp_path / "run")]) == 0
    assert "few.gguf" in capsys.readouterr().out
    exact = load_base(str(folder))
    fera.load_adapter(exact, tmp_path / "run", allow_other_base=False)


def test_gguf_refusals(weights, folder, image_folder, tmp_path):
    path = tmp_path / "few.gguf"
    write_gguf(path, weights, Kind.Q8_0)
    with pytest.raises(FeraError, match="the files hold no text_encoder .*, vae .*Name what is missing"):
        load_base(str(path))
    shown = skeletons(f"{path}|{folder}")["transformer"]
    assert shown.num_parameters() == skeletons(str(folder))["transformer"].num_parameters()
    base = f"{path}|{folder}"
    for changes, message in (
        ({"quantization": "fp8"}, "a base in a GGUF file is quantized already"),
        ({"adapter": {"full": True}}, "which quantization freezes"),
        ({"adapter": {"expert": {"peft_type": "LOHA"}}}, "this one is of LOHA"),
        ({"train": {"offload": "blocks"}}, "cannot move weights of a GGUF file"),
    ):
        with pytest.raises(ValueError, match=message):
            run_config(base, image_folder, tmp_path / "run", **changes)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FeraError, match=r"few\.gguf"):
        load_base(base)


def scaled(weights, *, by_row, name="scale_weight"):
    """As ComfyUI publishes them."""
    found = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for key, weight in weights.items():
        found[key] = weight
        if weight.ndim == 2 and key.endswith(".weight"):
            amount = weight.abs().amax(dim=1) if by_row else weight.abs().max()
            scale = (amount / 448).clamp(min=1e-12).float()
            found[key] = (weight / (scale[:, None] if by_row else scale)).to(torch.float8_e4m3fn)
            found[key.replace(".weight", f".{name}")] = scale
            found[key.replace(".weight", ".scale_input")] = torch.tensor(1.0)
    return found


@pytest.mark.parametrize(("by_row", "name"), [(False, "scale_weight"), (True, "weight_scale")])
def test_scaled_floats_are_multiplied_by_their_scales(by_row, name, weights, folder, tmp_path):
    path = tmp_path / "scaled.safetensors"
    save_file(scaled(weights, by_row=by_row, name=name), path)
    got, exact = load_base(f"{path}|{folder}").transformer, z_image.make_pipeline().transformer
    for key, weight in exact.state_dict().items():
        # Within half a step of three bits, or of the smallest numbers.
        error = (got.state_dict()[key] - weight).abs()
        assert (error <= weight.abs() / 15 + weight.abs().max() * 2**-15).all(), key
    assert {value.dtype for value in unscaled(path, torch.bfloat16).values() if value.ndim == 2} >= {torch.bfloat16}


def test_scales_that_are_not_read(weights, folder, tmp_path):
    path = tmp_path / "scaled.safetensors"
    tensors = scaled(weights, by_row=True)
    key = next(key for key in tensors if key.endswith("scale_weight"))
    save_file(tensors | {key: torch.ones(3, 2)}, path)
    with pytest.raises(FeraError, match=r"is F8_E4M3 with a scale of shape \(3, 2\).*take such a file"):
        load_base(f"{path}|{folder}")
    save_file(tensors | {"vae.decoder.weight": torch.zeros(1), "vae.decoder.scale_weight": torch.ones(())}, path)
    with pytest.raises(FeraError, match="weights with scales are read of a denoiser alone"):
        load_base(f"{path}|{folder}")


def test_linear_layers_alone_are_held_in_few_bits(weights, folder, tmp_path):
    write_gguf(tmp_path / "few.gguf", weights, Kind.Q8_0)
    model = load_base(f"{tmp_path / 'few.gguf'}|{folder}", dtype=torch.bfloat16).transformer
    assert all(isinstance(layer, nn.Linear) for layer in layers(model))
    assert not any(parameter.requires_grad for layer in layers(model) for parameter in [layer.weight])
