"""Choosing kappa."""

import json
import math

import pytest
import torch
from diffusers import AutoencoderKL
from listeners import train
from peft import get_peft_model
from training_cases import assert_same_adapter, log_of, power_cut, run_config

import fera
from fera import FeraConfig, FeraError, FrequencyBands, calibrate_kappa
from fera.adapters.inspection import describe
from fera.cli.main import main
from fera.data.images import load_image
from fera.data.tensors import to_tensor
from fera.method.calibration import RESOLUTION, indicators, information
from fera.models.noise import NoiseProcess, spread_timesteps
from fera.training import load_config

UNNOISED = {"add_noise": lambda latents, noise, timesteps: latents, "timesteps": torch.zeros(1)}


def two_scales(coarse: int, fine: int, side: int = 64, samples: int = 9) -> torch.Tensor:
    """Latents of two cosines across the width, in proportions that differ between samples."""
    place = (torch.arange(side) + 0.5) / side
    waves = torch.stack([torch.cos(math.pi * cycles * place) for cycles in (coarse, fine)])
    part = torch.linspace(0.1, 0.9, samples)
    mixed = torch.stack([part.sqrt(), (1 - part).sqrt()], dim=1) @ waves
    return mixed[:, None, None].expand(-1, 4, side, -1)


def test_bits_are_logarithms_of_variances():
    levels = torch.stack([torch.tensor([0.6, 0.4]), torch.tensor([0.4, 0.6])]).double()
    bits = 0.5 * math.log2((2 * 0.1**2 + RESOLUTION**2) / RESOLUTION**2)
    by_level = levels[:, None, None].expand(2, 5, 2, 2)
    assert information(by_level) == pytest.approx((bits, 0.0))
    by_sample = levels[None, :, None].expand(3, 2, 2, 2)
    assert information(by_sample) == pytest.approx((0.0, bits))


def test_what_never_moves_and_what_is_luck_tell_nothing():
    assert information(torch.full((4, 5, 2, 3), 1 / 3).double()) == (0.0, 0.0)
    luck = 0.3 + 0.1 * torch.randn(4, 500, 2, 1, generator=torch.Generator().manual_seed(0)).double()
    assert information(torch.cat([luck, 1 - luck], dim=3)) == pytest.approx((0, 0), abs=0.02)


def test_kappa_follows_the_scale_of_what_differs():
    """The split falls between the two scales, and moves with them: half the scale, half the kappa."""
    coarse = calibrate_kappa(two_scales(2, 12), num_bands=2, **UNNOISED)
    fine = calibrate_kappa(two_scales(4, 24), num_bands=2, **UNNOISED)
    assert 1 / 12 < math.pi * coarse.kappa < 1 / 2
    assert coarse.kappa == pytest.approx(2 * fine.kappa)
    assert coarse.chosen.sample_bits > 2 and coarse.chosen.level_bits == 0


def test_same_input_same_choice():
    latents = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    first = calibrate_kappa(latents)
    assert calibrate_kappa(list(latents)) == calibrate_kappa([latents[:2], *latents[2:]]) == first
    assert first.scores != calibrate_kappa(latents, seed=1).scores
    assert calibrate_kappa(latents, max_samples=4).samples == 4


def test_candidates_stay_between_half_a_pixel_and_a_quarter():
    result = calibrate_kappa([torch.randn(4, 32, 64), torch.randn(4, 48, 40)])
    kappas = [score.kappa for score in result.scores]
    assert result.shortest_side == 32 and kappas[0] == 0.5 / 32 and kappas[-1] == pytest.approx(0.25)
    assert all(finer < coarser for finer, coarser in zip(kappas, kappas[1:], strict=False))
    tiny = calibrate_kappa(torch.randn(2, 4, 2, 2))
    assert [score.kappa for score in tiny.scores] == [0.25]


def test_takes_the_noise_of_a_diffusers_scheduler():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler()
    levels = torch.tensor([50, 500, 950])
    result = calibrate_kappa(torch.ones(4, 4, 16, 16), add_noise=scheduler.add_noise, timesteps=levels)
    assert result.timesteps == [50, 500, 950] and result.chosen.level_bits > 0.5
    low = [row[0] for row in result.chosen.shares]
    assert low[0] > low[1] > low[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": []}, "no latents"),
        ({"latents": [torch.ones(4)]}, r"\(C, H, W\), \(B, C, H, W\) or \(C, L\), got \(4,\)"),
        ({"timesteps": torch.zeros(1)}, "belong together"),
        ({"kappas": []}, "at least one kappa"),
        ({"kappas": [2.0]}, r"kappa must lie in \(0, 1\], got 2.0"),
        ({"max_samples": 0}, "max_samples must be at least 1"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(FeraError, match=message):
        calibrate_kappa(**{"latents": torch.ones(2, 4, 8, 8)} | arguments)


@pytest.fixture(scope="module")
def emoji_latents(tmp_path_factory):
    """Latents of sixteen pictures of two styles each, gradients and black line art."""
    vae = AutoencoderKL.from_pretrained(fera.demo.base_path(), subfolder="vae")
    pixels = []
    for style in ("noto-v1", "fluent-emoji-high-contrast"):
        folder = fera.demo.unpack_style(style, tmp_path_factory.mktemp("styles") / style) / "validation"
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()[:16]]
        pixels += [to_tensor(load_image(folder / row["file_name"]), (64, 64)) for row in rows]
    with torch.no_grad():
        return vae.encode(torch.stack(pixels)).latent_dist.mean * vae.config.scaling_factor


@pytest.mark.parametrize("prediction_type", ["flow_prediction", "epsilon"])
def test_on_emoji_half_a_pixel_is_near_the_best_and_far_from_the_finest(emoji_latents, prediction_type):
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    process = NoiseProcess(prediction_type, 1000, alphas_cumprod=None if "flow" in prediction_type else alphas)
    timesteps = spread_timesteps(process, 8)
    result = calibrate_kappa(emoji_latents, add_noise=process.add_noise, timesteps=timesteps)
    assert 0.5 <= 16 * result.kappa <= 1
    half = result.scores[0]
    assert half.bits > 0.9 * result.chosen.bits and half.entropy > 0.9
    assert result.scores[-1].bits < 0.85 * result.chosen.bits
    # Below half a pixel, the floor taken away: an eighth tells next to nothing. Whatever resolution is assumed.
    sigmas = [0.125, 0.5, 0.7, 1.0, 4.0]
    bands = [FrequencyBands(3, sigma / 16, min_sigma=0) for sigma in sigmas]
    seen = [indicators(latent, bands, process.add_noise, timesteps, i) for i, latent in enumerate(emoji_latents)]
    for resolution in (0.01, 0.02, 0.05):
        bits = [sum(information(shares, resolution)) for shares in torch.stack(seen, dim=2)]
        assert max(bits) in bits[1:3] and bits[0] < 0.2 * bits[1]


def test_auto_is_no_kappa_for_a_model(tiny_unet):
    config = FeraConfig(kappa="auto", target_modules=["to_q"])
    unet = tiny_unet()
    with pytest.raises(FeraError, match="`fera train`.*`fera calibrate`.*fera.calibrate_kappa"):
        get_peft_model(unet, config)
    assert not hasattr(unet, "fera") and not any("lora" in name for name, _ in unet.named_parameters())


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    def make(name: str, **sections: dict):
        return run_config(tiny_sd_dir, image_folder, tmp_path / name, adapter={"kappa": "auto"}, **sections)

    return make


def test_training_chooses_and_keeps_the_number(configure, capsys):
    config = configure("run")
    kappa = train(config).kappa
    assert isinstance(kappa, float) and kappa >= 0.5 / 8
    assert load_config(config.output_dir / "config.toml").adapter.kappa == kappa
    assert json.loads((config.output_dir / "summary.json").read_text())["kappa"] == kappa
    assert json.loads((config.output_dir / "adapter" / "adapter_config.json").read_text())["kappa"] == kappa
    assert f"{kappa}"[:5] in json.dumps(describe(config.output_dir))
    assert log_of(config, "kappa") == [kappa]
    assert f"kappa = {kappa:.4g}" in capsys.readouterr().err


def test_resumed_run_keeps_its_kappa(configure, monkeypatch):
    straight, stopped = configure("straight"), configure("stopped", train={"checkpointing_steps": 3})
    kappa = train(straight).kappa
    with power_cut(4):
        train(stopped)
    # Not calibrated again: what the checkpoint holds counts.
    monkeypatch.setattr("fera.training.start.prepare.calibrate", None)
    assert train(stopped, resume=True).kappa == kappa
    assert_same_adapter(straight, stopped)


def test_command_prints_plots_and_writes(tiny_sd_dir, image_folder, tmp_path, capsys):
    output = tmp_path / "calibration"
    arguments = ["--base", str(tiny_sd_dir), "--data", str(image_folder), "--resolution", "32", "--num-bands", "2"]
    assert main(["calibrate", *arguments, "--output", str(output)]) == 0
    report = json.loads((output / "calibration.json").read_text())
    printed = capsys.readouterr().out
    assert f"kappa = {report['kappa']!r}" in printed and "chosen" in printed
    assert report["shortest_side"] == 16 and report["num_bands"] == 2 and report["samples"] == 4
    assert (output / "calibration.png").stat().st_size > 10_000


def test_command_takes_a_configuration_and_agrees_with_training(configure, tmp_path, capsys):
    from fera.training import to_toml

    config = configure("run")
    (tmp_path / "run.toml").write_text(to_toml(config))
    assert main(["calibrate", str(tmp_path / "run.toml"), "--output", str(tmp_path / "calibration")]) == 0
    report = json.loads((tmp_path / "calibration" / "calibration.json").read_text())
    assert train(config).kappa == report["kappa"]


def test_command_needs_a_run_or_base_and_data(tiny_sd_dir, capsys):
    assert main(["calibrate", "--base", str(tiny_sd_dir)]) == 2
    assert "--base and --data" in capsys.readouterr().err
