"""Latents of videos and sound in the calls of their denoisers: what the pipelines of the cases do not show."""

import pytest
import torch
from peft import inject_adapter_in_model
from torch.nn import functional

import fera
from fera import FeraConfig, FeraError, FrequencyBands
from fera.models.reading import CallReader
from models import cogvideox, hunyuan_video, ltx, wan


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def latent_of(denoiser, **call):
    return CallReader(denoiser).latent(denoiser, (), call)


def shares(latent):
    return FrequencyBands(3).indicator(latent)


def video(kind, frames, noise_level, seed=0):
    """A smooth texture, still or moving, and noise; shape (1, 4, T, 32, 48)."""
    picture = functional.avg_pool2d(noise(1, 4, 40, 56, seed=seed), 9, stride=1)
    picture = picture / picture.std()
    step = 3 if kind == "moving" else 0
    clean = torch.stack([picture.roll((step * t, 2 * step * t), (2, 3)) for t in range(frames)], dim=2)
    return (1 - noise_level) * clean + noise_level * noise(*clean.shape, seed=seed + 1)


@pytest.mark.parametrize("kind", ["still", "moving"])
@pytest.mark.parametrize("noise_level", [0.1, 0.5, 0.9])
def test_frames_as_channels_have_the_shares_of_one_frame(kind, noise_level):
    for frames in (2, 13):
        latent = video(kind, frames, noise_level)
        seen = shares(latent_of(wan.make_transformer(in_channels=4, out_channels=4), hidden_states=latent))
        torch.testing.assert_close(seen, shares(latent[:, :, 0]), rtol=0, atol=0.03)


def test_the_average_of_frames_would_depend_on_their_number():
    few, many = (shares(video("still", frames, 0.5).mean(2)) for frames in (2, 13))
    assert (many - few).abs().max() > 0.1
    still, moving = (shares(video(kind, 13, 0.1).mean(2)) for kind in ("still", "moving"))
    assert (still - moving).abs().max() > 0.01


def test_a_picture_is_a_video_of_one_frame():
    latent = noise(2, 16, 1, 8, 12)
    assert torch.equal(latent_of(wan.make_transformer(), hidden_states=latent), latent[:, :, 0])


@pytest.mark.parametrize("condition", [None, "latent_concat", "token_replace"])
def test_hunyuan_videos_conditions_are_left_out(condition):
    in_channels = 9 if condition == "latent_concat" else 4
    denoiser = hunyuan_video.make_transformer(image_condition_type=condition, in_channels=in_channels)
    latent = noise(2, in_channels, 3, 8, 12)
    drawn = latent[:, :4, 1:] if condition == "token_replace" else latent[:, :4]
    assert torch.equal(latent_of(denoiser, hidden_states=latent), drawn.flatten(1, 2))


@pytest.mark.parametrize("family", ["wan", "ltx"])
def test_a_given_frame_does_not_steer_the_gate_and_the_trace_has_the_time_of_the_others(family):
    if family == "wan":
        denoiser = wan.make_transformer()
        latent, other = noise(2, 16, 3, 8, 12), noise(2, 16, 3, 8, 12)
        other[:, :, 0] = 7
        sizes = {}
    else:
        denoiser = ltx.components()["transformer"]
        latent, other = noise(2, 72, 8), noise(2, 72, 8)
        other[:, :24] = 7
        sizes = {"num_frames": 3, "height": 4, "width": 6, "encoder_attention_mask": torch.ones(2, 5)}
    timestep = torch.full((2, 3, 24), 500.0)
    timestep[:, 0] = 0
    inject_adapter_in_model(FeraConfig(r=2), denoiser, "default")
    with fera.trace(denoiser) as steps:
        for hidden_states in (latent, other):
            denoiser(
                hidden_states=hidden_states,
                timestep=timestep.flatten(1),
                encoder_hidden_states=noise(2, 5, 64),
                **sizes,
            )
    assert torch.equal(steps[0].indicator, steps[1].indicator)
    assert steps[0].timestep.tolist() == [500, 500]


def test_cogvideox_may_append_channels():
    denoiser = cogvideox.components(in_channels=8)["transformer"]
    latent = noise(2, 3, 8, 8, 12)
    assert torch.equal(latent_of(denoiser, hidden_states=latent), latent[:, :, :4].flatten(1, 2))


def test_packed_frames_need_their_sizes():
    denoiser, tokens = ltx.components()["transformer"], noise(2, 72, 8)
    with pytest.raises(FeraError, match="LTXVideo.* called with 72 tokens, and num_frames, .* are None, None, None"):
        latent_of(denoiser, hidden_states=tokens)
    with pytest.raises(FeraError, match="height and width are 3, 8, 6: .*pass them in latent pixels"):
        latent_of(denoiser, hidden_states=tokens, num_frames=3, height=8, width=6)
