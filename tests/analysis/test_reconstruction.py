"""Which bands one prediction recovers: against the noise process, without and with adapters."""

import pytest
import torch
from adapter_cases import add_adapter

import fera
from fera import FeraError, FrequencyBands
from fera.analysis.energies import Energies
from fera.analysis.energy_plots import plot_energies, plot_reconstruction
from fera.analysis.reconstruction import Pictures, open_pictures, relative_error
from fera.analysis.words import reconstruction_words
from fera.models.noise import spread_timesteps

BANDS = FrequencyBands()


@pytest.fixture(params=["tiny_sd_dir", "tiny_sd3_dir"])
def sources(request, image_folder):
    return open_pictures(str(request.getfixturevalue(request.param)), image_folder, count=3)


def test_a_denoiser_that_knows_the_noise_recovers_all(sources, monkeypatch):
    pictures = Pictures(sources, "cpu")
    process, asked = sources.process, []

    def oracle(denoiser, noisy, timesteps, conditions):
        clean = torch.cat([batch.latents for batch in pictures._batches])
        sigma = (timesteps / process.num_train_timesteps).view(-1, 1, 1, 1)
        asked.append((timesteps, next(iter(conditions.values())).shape[0]))
        return (noisy - clean) / sigma  # of flow matching, noise - clean

    object.__setattr__(sources, "family", type("Oracle", (), {"predict": staticmethod(oracle)}))
    found = pictures.reconstruct(BANDS, model="base", levels=4)
    assert found.signals["noisy"].shape == (4, 3, 3)
    assert found.timesteps == spread_timesteps(process, 4).tolist()
    assert [rows for _, rows in asked] == [3] * 4
    assert (relative_error(found) < 1e-6).all()
    torch.testing.assert_close(found.signals["clean"], found.signals["data"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.signals["data"][0], found.signals["data"][-1])


def test_noise_falls_and_is_the_same_for_every_model(sources):
    pictures, told = Pictures(sources, "cpu"), []
    base = pictures.reconstruct(BANDS, model="base", levels=3, progress=told.append)
    again = pictures.reconstruct(BANDS, model="base", levels=3)
    other = pictures.reconstruct(BANDS, model="base", levels=3, seed=1)
    assert len(pictures) == 3 and told == [3, 6, 9]
    assert all(torch.equal(base.signals[name], again.signals[name]) for name in base.signals)
    assert not torch.equal(base.signals["noisy"], other.signals["noisy"])
    add_adapter(sources.pipe)
    adapted = pictures.reconstruct(BANDS, model="adapted", levels=3)
    assert torch.equal(adapted.signals["noisy"], base.signals["noisy"])
    assert not torch.equal(adapted.signals["clean"], base.signals["clean"])
    fera.set_adapters(sources.pipe, [])
    off = pictures.reconstruct(BANDS, model="base", levels=3)
    assert torch.equal(off.signals["error"], base.signals["error"])


def test_the_pipeline_draws_after_encoding(sources):
    Pictures(sources, "cpu")
    assert sources.pipe.vae.dtype == sources.dtype
    sources.pipe.set_progress_bar_config(disable=True)
    assert sources.pipe("a cat", num_inference_steps=1).images[0].size == (16, 16)


def test_captions_are_not_needed_and_pictures_are(tiny_sd_dir, image_folder, tmp_path):
    for path in image_folder.glob("*.txt"):
        path.unlink()
    sources = open_pictures(str(tiny_sd_dir), image_folder, count=10)
    assert len(sources.training) == 4
    assert not (image_folder / "unused").exists()
    with pytest.raises(FeraError, match="does not exist"):
        open_pictures(str(tiny_sd_dir), tmp_path / "none", count=1)
    with pytest.raises(FeraError, match="at least one picture, got 0"):
        open_pictures(str(tiny_sd_dir), image_folder, count=0)
    with pytest.raises(FeraError, match="at least one noise level, got 0"):
        Pictures(sources, "cpu").reconstruct(BANDS, model="base", levels=0)


def made_up(model="base", high=0.9):
    data = torch.ones(4, 2, 3)
    error = torch.tensor([[0.9, 0.9, 0.9], [0.4, 0.7, 0.9], [0.2, 0.3, high], [0.1, 0.1, 0.9 * high]])
    signals = {"noisy": data, "clean": data, "error": error[:, None].expand(4, 2, 3), "data": data}
    return Energies(model, [875.0, 625.0, 375.0, 125.0], signals)


def test_words_and_plots(tmp_path):
    base, adapted = made_up(), made_up("adapted", high=0.3)
    first, *_ = reconstruction_words([base])
    assert first.endswith(
        "the low band from t = 625 down, the middle band from t = 375 down, the high band at no level."
    )
    *_, most, whole = reconstruction_words([base, adapted])
    assert "in the high band at timestep 375, from 0.90 to 0.30 of the band's energy" in most
    assert "low +0 %, middle +0 %, high -32 %" in whole
    plot_reconstruction([base, adapted], tmp_path / "one.png")
    course = Energies("base", base.timesteps, dict.fromkeys(("latent", "clean", "prediction"), base.signals["error"]))
    plot_energies([course], tmp_path / "two.png")
    assert (tmp_path / "one.png").stat().st_size > 5000 < (tmp_path / "two.png").stat().st_size
