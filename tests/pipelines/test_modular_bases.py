"""Bases as modular pipelines save them: their parts in the plain pipeline."""

import json

import diffusers
import pytest
import torch
from diffusers import FluxModularPipeline, FluxPipeline
from models import flux
from trained_cases import qwen_image, wan, z_image
from training_cases import log_of, run_config

from fera.cli.main import main
from fera.errors import FeraError
from fera.models.components import denoisers
from fera.models.families import family_of
from fera.pipelines.base import load_base
from fera.pipelines.skeletons import skeletons
from fera.training import train


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of a modular pipeline, and the plain pipeline of the same parts."""
    plain = flux.make_pipeline()
    modular = FluxModularPipeline()
    modular.update_components(**plain.components)
    folder = tmp_path_factory.mktemp("modular")
    modular.save_pretrained(str(folder / "first"))
    return (folder / "first").rename(folder / "flux"), plain  # its index has the path that it was saved to


def test_it_opens_as_the_plain_pipeline(saved):
    folder, plain = saved
    pipe = load_base(str(folder), dtype={"vae": torch.float32, "default": torch.float32})
    assert type(pipe) is FluxPipeline and pipe.name_or_path == str(folder)
    for each in (pipe, plain):
        each.set_progress_bar_config(disable=True)
    call = {"prompt": "a red rocket", "num_inference_steps": 2, "height": 16, "width": 16, "output_type": "pt"}
    drawn = [each(**call, generator=torch.Generator().manual_seed(0)).images for each in (pipe, plain)]
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-5)
    half = load_base(str(folder), dtype={"vae": torch.float32, "default": torch.bfloat16})
    assert (half.transformer.dtype, half.vae.dtype) == (torch.bfloat16, torch.float32)
    assert skeletons(str(folder))["transformer"].num_parameters() == plain.transformer.num_parameters()


def test_it_trains_resumes_and_draws(saved, image_folder, tmp_path):
    folder, _ = saved
    config = run_config(folder, image_folder, tmp_path / "run", train={"steps": 2}, data={"resolution": 16})
    train(config)
    train(config.model_copy(update={"train": config.train.model_copy(update={"steps": 3})}), resume=True)
    assert len(log_of(config, "loss")) == 3
    size = ["--width", "16", "--height", "16", "--steps", "2"]
    assert main(["generate", "a cat", "--adapter", str(tmp_path / "run"), *size, "--output", str(tmp_path / "o")]) == 0


@pytest.mark.parametrize(
    ("make", "modular"),
    [
        (qwen_image.make_pipeline, diffusers.QwenImageModularPipeline),
        (z_image.make_pipeline, diffusers.ZImageModularPipeline),
        (wan.make_14b, diffusers.Wan22ModularPipeline),
    ],
)
def test_other_models(make, modular, tmp_path):
    plain, made = make(), modular()
    made.update_components(**{name: part for name, part in plain.components.items() if part is not None})
    made.update_components(**{name: plain.config[name] for name in ("boundary_ratio",) if name in plain.config})
    made.save_pretrained(str(tmp_path))
    pipe = load_base(str(tmp_path))
    assert type(pipe) is type(plain) and family_of(pipe).text_components == family_of(plain).text_components
    assert family_of(pipe).ranges == family_of(plain).ranges
    for name, denoiser in denoisers(plain).items():
        for key, weight in denoiser.state_dict().items():
            assert torch.equal(getattr(pipe, name).state_dict()[key], weight)


def test_mistakes(saved, tmp_path):
    folder, _ = saved
    index = json.loads((folder / "modular_model_index.json").read_text())
    (tmp_path / "modular_model_index.json").write_text(json.dumps(index | {"_class_name": "EchoModularPipeline"}))
    with pytest.raises(FeraError, match="is of a EchoModularPipeline, and diffusers .* has no plain pipeline"):
        load_base(str(tmp_path))
    (tmp_path / "modular_model_index.json").write_text("{")
    with pytest.raises(FeraError, match=r"its modular_model_index\.json cannot be read"):
        load_base(str(tmp_path))
