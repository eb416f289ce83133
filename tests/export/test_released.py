"""Checkpoints of the authors' released code: the same outputs here, and nothing else is unpickled."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from adapter_cases import draw, make_pipeline
from tiny import make_unet
from torch import nn
from tuner_cases import unet_inputs

import fera
from fera import FeraConfig, FeraError
from fera.adapters.file import open_adapter
from fera.cli.main import main
from fera.export.released import load_released
from fera.method.released_bands import ReleasedBands


class Experts(nn.Module):
    """A linear layer with experts as released: full outputs, stacked and summed."""

    def __init__(self, base, count, rank, alpha):
        super().__init__()
        self.base_layer, self.scale, self.weights = base, alpha / rank, None
        self.experts = nn.ModuleList(nn.Module() for _ in range(count))
        for expert in self.experts:
            expert.lora_down = nn.Linear(base.in_features, rank, bias=False)
            expert.lora_up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        outputs = torch.stack([e.lora_up(e.lora_down(x)) * self.scale for e in self.experts], dim=1)
        weights = self.weights.view(*self.weights.shape, *[1] * (outputs.ndim - 2))
        return self.base_layer(x) + (weights * outputs).sum(dim=1)


def blurred(latent, sigma):
    """Convolution with a sampled two-dimensional Gaussian, borders of zeros."""
    size = int(2 * 4 * sigma + 1) | 1
    x = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    kernel = torch.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * sigma**2)) / (2 * math.pi * sigma**2)
    kernel = (kernel / kernel.sum()).to(latent.dtype).expand(latent.shape[1], 1, size, size)
    return F.conv2d(latent, kernel, padding=size // 2, groups=latent.shape[1])


def plain_indicator(latent, bands):
    """K Gaussians, K + 1 bands from low to high, the first K kept."""
    kappa = min(latent.shape[-2:]) / 128
    pyramid = [latent, *(blurred(latent, kappa * 2**k) for k in range(bands))]
    parts = [pyramid[-1], *(pyramid[i] - pyramid[i + 1] for i in range(bands - 1, -1, -1))][:bands]
    energies = torch.stack([part.square().sum(dim=(1, 2, 3)) for part in parts], dim=1)
    return energies / (energies.sum(dim=1, keepdim=True) + 1e-8)


class Released(nn.Module):
    """The released model in short: what it saves, and how it computes."""

    def __init__(self, unet, count=3, bands=3, rank=2, alpha=1.0, tau=0.7, targets=("to_q", "to_k", "to_v")):
        super().__init__()
        self.base_model, self.bands, self.tau = unet, bands, tau
        torch.manual_seed(7)
        self.net = nn.Sequential(nn.Linear(bands, 64), nn.ReLU(), nn.Linear(64, count))
        self.layers = []
        for module in list(unet.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and any(target in name for target in targets):
                    setattr(module, name, Experts(child, count, rank, alpha))
                    self.layers.append(getattr(module, name))

    def forward(self, **inputs):
        weights = torch.softmax(self.net(plain_indicator(inputs["sample"], self.bands)) / self.tau, dim=-1)
        for layer in self.layers:
            layer.weights = weights
        return self.base_model(**inputs).sample

    def save_adapters(self, path):
        state = {f"router.net.{name}": value for name, value in self.net.state_dict().items()}
        for name, parameter in self.base_model.named_parameters():
            if "experts" in name:
                state[f"base_model.{name}"] = parameter
        torch.save(state, path)
        return path


@pytest.fixture
def checkpoint(tmp_path):
    return Released(make_pipeline("sd").unet).save_adapters(tmp_path / "fera_output.pt")


# The indicator


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (33, 48), (96, 64)])
@pytest.mark.parametrize("bands", [2, 3, 5])
def test_the_indicator_is_the_released_formula(size, bands):
    latent = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = plain_indicator(latent, bands)
    torch.testing.assert_close(ReleasedBands(bands).indicator(latent), expected, rtol=1e-12, atol=1e-12)
    found = ReleasedBands(bands).indicator(latent.float())
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


def test_it_drops_the_high_band():
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = ReleasedBands(3).split(noise).square().sum() / noise.square().sum()
    assert kept < 0.5


def test_a_setting_of_the_config():
    with pytest.raises(FeraError, match="indicator must be one of bands, released, got 'x'"):
        FeraConfig(indicator="x")
    with pytest.raises(FeraError, match="shape \\(B, C, H, W\\)"):
        ReleasedBands().indicator(torch.zeros(4, 8, 8))


# The import


@pytest.mark.parametrize(
    "settings",
    [{}, {"count": 4, "bands": 2, "rank": 3, "alpha": 6.0, "tau": 0.3}, {"targets": ("to_q", "proj")}],
    ids=["defaults", "others", "targets"],
)
def test_outputs_are_the_released_ones(settings, tmp_path):
    released = Released(make_unet(), **settings)
    path = released.save_adapters(tmp_path / "released.pt")
    unet = make_unet()
    config = load_released(unet, path, alpha=settings.get("alpha", 1.0), temperature=settings.get("tau", 0.7))
    assert (config.num_experts, config.num_bands) == (settings.get("count", 3), settings.get("bands", 3))
    inputs = unet_inputs(3, size=16)
    with torch.no_grad():
        expected, base = released(**inputs), make_unet()(**inputs).sample
        found = unet(**inputs).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - base).abs().max() > 1e-3


def test_it_becomes_an_adapter_like_any_other(checkpoint, tmp_path):
    pipe = make_pipeline("sd")
    load_released(pipe, checkpoint)
    expected = draw(pipe)
    fera.save_adapter(pipe, tmp_path / "adapter")
    config = open_adapter(tmp_path / "adapter").config
    assert config.indicator == "released" and config.base_fingerprint["class"] == "UNet2DConditionModel"
    assert config.target_modules == {"to_q", "to_k", "to_v"}
    again = make_pipeline("sd")
    fera.load_adapter(again, tmp_path / "adapter")
    assert torch.equal(draw(again), expected)


def test_the_command(checkpoint, tiny_sd_dir, tmp_path, capfd):
    arguments = ["import", str(checkpoint), str(tmp_path / "out"), "--base", str(tiny_sd_dir)]
    assert main(arguments) == 0
    assert capfd.readouterr().out.strip() == str(tmp_path / "out" / "adapter_model.safetensors")
    assert open_adapter(tmp_path / "out").config.base_model_name_or_path == str(tiny_sd_dir)
    assert main(arguments) == 2
    assert "exists already" in capfd.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


# What is refused


class Evil:
    ran = False

    def __reduce__(self):
        return (setattr, (Evil, "ran", True))


def broken(state, **changes):
    return {key: value for key, value in (state | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: Evil(), "unpickles tensors only"),
        (lambda state: [1, 2], "holds no state dict"),
        (lambda state: broken(state, **{"router.net.2.weight": None}), "router or experts are missing"),
        (lambda state: broken(state, lora_te=torch.zeros(1)), "it has lora_te"),
        (lambda state: dict(list(state.items())[:-1]), "do not all have 3 experts"),
        (lambda state: broken(state, **{"router.net.2.weight": torch.zeros(2, 64)}), "a router with answers of"),
        (lambda state: {key.replace("to_q", "to_x"): value for key, value in state.items()}, "does not fit this UNet"),
        (lambda state: {key.replace("attn1", "attn9"): value for key, value in state.items()}, "does not fit this"),
        (lambda state: {k: torch.cat([v, v], 1) if "down" in k else v for k, v in state.items()}, "has shape"),
    ],
)
def test_damaged_checkpoints_change_nothing(checkpoint, damage, message):
    torch.save(damage(torch.load(checkpoint, weights_only=True)), checkpoint)
    pipe = make_pipeline("sd")
    names = set(dict(pipe.unet.named_modules()))
    with pytest.raises(FeraError, match=message):
        load_released(pipe, checkpoint)
    assert set(dict(pipe.unet.named_modules())) == names and not hasattr(pipe.unet, "peft_config")
    assert not Evil.ran


def test_what_is_no_checkpoint(checkpoint, tmp_path):
    with pytest.raises(FeraError, match="cannot be read: No such file"):
        load_released(make_unet(), tmp_path / "none.pt")
    for content in (b"", b"hello", pickle.dumps(Evil())):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(FeraError, match="no checkpoint that can be read safely"):
            load_released(make_unet(), tmp_path / "x.pt")
    unet = make_unet()
    load_released(unet, checkpoint)
    with pytest.raises(FeraError, match="adapter_name must be a new name"):
        load_released(unet, checkpoint)
