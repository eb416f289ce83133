"""Bases in one file: under their original names, of all parts or the denoiser alone, with a folder's configuration."""

import json
import shutil

import original_names
import original_transformers
import pytest
import torch
from adapter_cases import draw
from safetensors.torch import save_file
from tiny import make_sd3_pipeline, make_sd_pipeline
from trained_cases import qwen_image, wan, z_image
from training_cases import log_of, run_config

import fera
from fera.cli.main import main
from fera.errors import FeraError
from fera.pipelines.base import load_base
from fera.pipelines.skeletons import skeletons
from fera.training import train


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of Stable Diffusion under the names of its original code, and the pipeline in it."""
    pipe = make_sd_pipeline()
    with torch.no_grad():
        for weight in pipe.unet.parameters():  # unlike what the configuration alone would make
            weight.add_(0.01)
    path = tmp_path_factory.mktemp("file") / "painter.safetensors"
    save_file(original_names.stable_diffusion(pipe), path)
    return path, pipe


@pytest.fixture
def configuration(tiny_sd_dir, tmp_path):
    """A folder as for its configuration alone: no weights."""
    folder = tmp_path / "configuration"
    shutil.copytree(tiny_sd_dir, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return folder


def equal(pipe, other, names=("unet", "vae", "text_encoder")):
    for name in names:
        state, expected = getattr(pipe, name).state_dict(), getattr(other, name).state_dict()
        assert state.keys() == expected.keys()
        for key, weight in expected.items():
            torch.testing.assert_close(state[key].float(), weight.float(), rtol=0, atol=0, msg=f"{name} {key}")


def test_a_checkpoint_of_all_parts(checkpoint, configuration):
    path, expected = checkpoint
    pipe = load_base(f"{path}|{configuration}")
    equal(pipe, expected)
    assert type(pipe) is type(expected) and pipe.name_or_path == f"{path}|{configuration}"
    pipe.set_progress_bar_config(disable=True)
    expected.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(pipe), draw(expected), rtol=1e-4, atol=1e-5)


def test_parts_have_their_precision(checkpoint, configuration):
    pipe = load_base(f"{checkpoint[0]}|{configuration}", dtype={"vae": torch.float32, "default": torch.bfloat16})
    assert (pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


def test_a_denoiser_alone(tmp_path):
    """The other parts are the folder's."""
    pipe = z_image.make_pipeline()
    pipe.save_pretrained(tmp_path / "folder")
    with torch.no_grad():
        for weight in pipe.transformer.parameters():
            weight.add_(0.01)
    weights = original_names.z_image(pipe.transformer)
    save_file(weights, tmp_path / "alone.safetensors")
    equal(load_base(f"{tmp_path / 'alone.safetensors'}|{tmp_path / 'folder'}"), pipe, ("transformer", "vae"))
    del weights[next(key for key in weights if key.endswith("qkv.weight"))]
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(FeraError, match=r"part\.safetensors: it lacks weights of a ZImageTransformer2DModel"):
        load_base(f"{tmp_path / 'part.safetensors'}|{tmp_path / 'folder'}")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """By name: a pipeline in a folder, and its denoiser in a file, which is of other weights."""
    made = {}
    for name, make, rename in (
        ("wan", wan.make_pipeline, original_transformers.wan),
        ("qwen-image", qwen_image.make_pipeline, original_transformers.qwen_image),
        ("sd3", make_sd3_pipeline, original_transformers.stable_diffusion_3),
    ):
        folder = tmp_path_factory.mktemp(name)
        pipe = make()
        pipe.save_pretrained(folder / "folder")
        with torch.no_grad():
            for weight in pipe.transformer.parameters():
                weight.add_(0.01)
        save_file(rename(pipe.transformer), folder / "file.safetensors")
        made[name] = (pipe, folder / "file.safetensors", folder / "folder")
    return made


@pytest.mark.parametrize("name", ["wan", "qwen-image", "sd3"])
def test_denoisers_as_comfyui_has_them(alone, name):
    expected, file, folder = alone[name]
    equal(load_base(f"{file}|{folder}"), expected, ("transformer", "vae"))


def test_the_shapes_of_a_file_decide(alone, tmp_path):
    """A folder of a pipeline with more layers, or with the folder of its denoiser taken out."""
    expected, file, folder = alone["sd3"]
    shutil.copytree(folder, tmp_path / "folder")
    place = tmp_path / "folder" / "transformer" / "config.json"
    settings = json.loads(place.read_text())
    place.write_text(json.dumps(settings | {"num_layers": 7, "joint_attention_dim": 1024}))
    equal(load_base(f"{file}|{tmp_path / 'folder'}"), expected, ("transformer",))
    shutil.rmtree(tmp_path / "folder" / "tokenizer_2")
    with pytest.raises(
        FeraError, match=r"file\.safetensors: tokenizer_2 is not in .*: name a pipeline that has it all"
    ):
        load_base(f"{file}|{tmp_path / 'folder'}")
    with pytest.raises(FeraError, match="it holds the denoiser of Qwen-Image, and .* a SD3Transformer2DModel"):
        load_base(f"{alone['qwen-image'][1]}|{folder}")


def test_a_denoiser_alone_says_what_it_lacks(alone, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["generate", "a cat", "--base", str(alone["qwen-image"][1])]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "The configuration of Qwen/Qwen-Image was taken for it" in told and "Traceback" not in told
    for part in (
        "its file, as qwen_2.5_vl_7b.safetensors",
        "a folder with its vocab.json",
        "qwen_image_vae.safetensors",
    ):
        assert part in told


def test_a_file_of_anything(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "any.safetensors")
    with pytest.raises(FeraError, match=r"any\.safetensors: its weights are of no model known here; name its pipeline"):
        load_base(str(tmp_path / "any.safetensors"))


def test_it_trains_and_draws(checkpoint, configuration, image_folder, tmp_path, capsys):
    """The adapter remembers the file and its configuration, and draws without being told of them."""
    base = f"{checkpoint[0]}|{configuration}"
    config = run_config(base, image_folder, tmp_path / "run", train={"steps": 2})
    train(config)
    assert len(log_of(config, "loss")) == 2
    output = str(tmp_path / "out")
    assert (
        main(["generate", "a red rocket", "--adapter", str(tmp_path / "run"), "--steps", "2", "--output", output]) == 0
    )
    pipe = make_sd_pipeline()
    with pytest.raises(FeraError, match="base"):  # of other weights
        fera.load_adapter(pipe, tmp_path / "run")
    assert skeletons(base)["unet"].num_parameters() == checkpoint[1].unet.num_parameters()
    assert main(["models", base, "--blocks", "mid_block"]) == 0
    assert "unet: UNet2DConditionModel: " in capsys.readouterr().out


def test_mistakes(checkpoint, configuration, tmp_path, tiny_sd3_dir):
    path, _ = checkpoint
    with pytest.raises(FeraError, match=r"is no file \(looked from"):
        load_base(f"{tmp_path / 'absent.safetensors'}|{configuration}")
    with pytest.raises(FeraError, match=r"or a pipeline's folder or Hub id behind '\|'"):
        load_base(f"{path}|")
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    with pytest.raises(FeraError, match=r"only \.safetensors and \.gguf are read; pickles"):
        load_base(str(tmp_path / "model.ckpt"))
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-50])
    with pytest.raises(FeraError, match="cannot be read"):
        load_base(f"{tmp_path / 'cut.safetensors'}|{configuration}")
    with pytest.raises(FeraError, match=r"base .*painter\.safetensors: cannot load base"):
        load_base(f"{path}|{tiny_sd3_dir}")
    # Nothing says what it is, and nothing can be fetched here: the error names the configuration that was guessed.
    with pytest.raises(
        FeraError, match=r"The configuration of stable-diffusion-v1-5/.* was taken for it; name another"
    ):
        load_base(str(path))


def test_shards_and_variants(tmp_path):
    pipe = make_sd_pipeline()
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16", max_shard_size="100KB")
    assert len(list((tmp_path / "unet").glob("*.safetensors"))) > 2
    equal(load_base(str(tmp_path), variant="fp16"), pipe)
    with pytest.raises(FeraError, match="cannot load base"):
        load_base(str(tmp_path))
