"""How a base is read, and held in memory."""

import shutil

import pytest
import torch
from diffusers.pipelines.omnigen import pipeline_omnigen
from models import omnigen

from fera.errors import FeraError
from fera.pipelines.base import load_base


def test_convolutions_lie_channels_last_and_keep_their_values(tiny_sd_dir):
    from diffusers import UNet2DConditionModel

    pipe = load_base(str(tiny_sd_dir))
    plain = UNet2DConditionModel.from_pretrained(tiny_sd_dir, subfolder="unet").state_dict()
    for part in (pipe.unet, pipe.vae):
        kernels = [parameter for parameter in part.parameters() if parameter.ndim == 4]
        assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    for name, value in pipe.unet.state_dict().items():
        assert torch.equal(value, plain[name])


def test_it_can_be_saved(tiny_sd_dir, tmp_path):
    pipe = load_base(str(tiny_sd_dir))
    pipe.save_pretrained(tmp_path / "copy")
    again = load_base(str(tmp_path / "copy")).unet.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in pipe.unet.state_dict().items())


def test_a_folder_without_a_part_says_which(tiny_sd_dir, tmp_path):
    shutil.copytree(tiny_sd_dir, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / "vae")
    with pytest.raises(FeraError, match=r"base .*base lacks vae \(AutoencoderKL\): model_index\.json names it"):
        load_base(str(tmp_path / "base"))


def test_a_package_of_a_pipelines_own_is_named(tmp_path, monkeypatch):
    """OmniGen's code is left without a name where torchvision is not installed."""
    omnigen.make_pipeline().save_pretrained(tmp_path)
    monkeypatch.delattr(pipeline_omnigen, "OmniGenMultiModalProcessor")
    with pytest.raises(FeraError, match=r"it needs a package that is not installed \(name .*OmniGen needs torchvision"):
        load_base(str(tmp_path))
