"""Parts of a base that wait in their files: what stands in for them, and how they come."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fera.errors import FeraError
from fera.pipelines.base import load_base
from fera.pipelines.block_offload import move
from fera.pipelines.empty_parts import PartIsEmpty, is_empty
from fera.pipelines.waiting import Base
from fera.pipelines.weight_files import dtype_of

FLOAT = {"default": torch.float32}


def storage(part):
    return sum(held.untyped_storage().nbytes() for held in (*part.parameters(), *part.buffers()))


def test_parts_wait_and_say_what_they_are(tiny_sd_dir):
    base, whole = Base(str(tiny_sd_dir), FLOAT), load_base(str(tiny_sd_dir))
    assert base.waiting == ["vae", "text_encoder", "unet"]
    for name in base.waiting:
        part, real = getattr(base.pipe, name), getattr(whole, name)
        assert type(part) is type(real)
        shapes = {key: (held.shape, held.dtype, held.device) for key, held in real.state_dict().items()}
        assert {key: (held.shape, held.dtype, held.device) for key, held in part.state_dict().items()} == shapes
        assert storage(part) < storage(real) / 100


def test_a_part_that_waits_does_not_compute(tiny_sd_dir):
    pipe = Base(str(tiny_sd_dir), FLOAT).pipe
    with pytest.raises(PartIsEmpty, match="text_encoder was used before it was loaded"):
        pipe.text_encoder(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(PartIsEmpty, match="vae"):
        pipe.vae.encode(torch.zeros(1, 3, 16, 16))


def test_parts_come_as_they_are_loaded_otherwise(tiny_sd_dir):
    base = Base(str(tiny_sd_dir), {"vae": torch.float32, "default": torch.bfloat16})
    whole = load_base(str(tiny_sd_dir), dtype={"vae": torch.float32, "default": torch.bfloat16})
    with base.using(["text_encoder", "tokenizer"]):
        assert base.waiting == ["vae", "unet"]
        assert_equal(base.pipe.text_encoder, whole.text_encoder)
        with base.using(["text_encoder"]):
            pass
        assert not is_empty(base.pipe.text_encoder)  # the outer block's
    assert base.waiting == ["vae", "text_encoder", "unet"]
    base.bring(["unet"])
    assert_equal(base.pipe.unet, whole.unet)
    base.bring(["vae"], dtype=torch.float16)
    assert base.pipe.vae.dtype == torch.float16
    base.bring()
    assert base.waiting == []
    move(base.pipe, "cpu")


def assert_equal(part, other):
    held, expected = part.state_dict(), other.state_dict()
    assert held.keys() == expected.keys()
    assert all(held[key].dtype == expected[key].dtype and torch.equal(held[key], expected[key]) for key in expected)
    assert all(not parameter.is_meta for parameter in part.parameters())


def test_moving_a_pipeline_fills_nothing(tiny_sd_dir):
    pipe = Base(str(tiny_sd_dir), FLOAT).pipe
    before = {name: storage(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    move(pipe, "meta")
    assert pipe.device == torch.device("meta")
    move(pipe, "cpu")
    assert pipe.device == torch.device("cpu")
    assert {name: storage(getattr(pipe, name)) for name in before} == before


def test_the_files_of_a_part(tiny_sd_dir, tmp_path):
    base = Base(str(tiny_sd_dir), FLOAT)
    assert {path.name for path in base.files("unet")} == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert [path.name for path in base.weight_files("unet")] == ["diffusion_pytorch_model.safetensors"]
    assert base.files("nothing") == []
    assert Base("emoji", FLOAT).weight_files("vae")


def test_the_dtype_of_files(tmp_path):
    assert dtype_of([]) is None
    tensors = {"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(1), "c": torch.zeros(3, dtype=torch.int64)}
    save_file(tensors | {"d": torch.zeros(1, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    assert dtype_of([tmp_path / "model.safetensors"]) == torch.bfloat16
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(FeraError, match=r"broken\.safetensors cannot be read"):
        dtype_of([tmp_path / "broken.safetensors"])


def test_weights_have_mappings_of_their_own(tiny_sd_dir):
    base, whole = Base(str(tiny_sd_dir), FLOAT), load_base(str(tiny_sd_dir))
    base.bring(["unet"])
    assert_equal(base.pipe.unet, whole.unet)
    flat = [weight for weight in base.pipe.unet.parameters() if weight.ndim != 4]
    assert len({weight.untyped_storage().data_ptr() for weight in flat}) == len(flat)
    strides = {name: weight.stride() for name, weight in whole.unet.named_parameters()}
    assert {name: weight.stride() for name, weight in base.pipe.unet.named_parameters()} == strides


def test_a_quantized_part_does_not_wait(tiny_sd_dir, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_sd_dir, tmp_path / "base")
    config = json.loads((folder / "unet" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FeraError, match="cannot load base"):  # diffusers quantizes on a GPU alone
        Base(str(folder), FLOAT)


def test_a_base_without_weights_is_told_when_they_are_wanted(tiny_sd_dir, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_sd_dir, tmp_path / "base")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    base = Base(str(folder), FLOAT)
    with pytest.raises(FeraError, match="cannot load base"):
        base.bring(["vae"])
    assert base.waiting == ["vae", "text_encoder", "unet"]
    base.bring(["unet"])
    assert (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").keys() == base.pipe.unet.state_dict().keys()
    )


def test_a_base_without_gradients_is_refused_before_it_is_loaded(tiny_sd_dir, tmp_path):
    shutil.copytree(tiny_sd_dir, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "base" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "sdnq"}}))
    with pytest.raises(FeraError, match="its unet is quantized by SDNQ, whose layers give no gradient"):
        Base(str(tmp_path / "base"), {"default": torch.float32})
