"""Sounds as files and pictures, `fera generate` with a base of sound, and what a run's previews and report show."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from sound_cases import sound_folder, tone, write_sound
from trained_cases import sound as cases
from training_cases import assert_resumes, run_config

from fera.cli.main import main
from fera.data.sounds.reading import beginning, look_at
from fera.data.sounds.sound import Waveform
from fera.data.sounds.spectrogram import spectrogram
from fera.errors import FeraError
from fera.evaluation import evaluate
from fera.generation import generate_sounds, save_sound
from fera.generation.sounds import read_about, small_sound
from fera.report import ReportRequest, write_report
from fera.training import to_toml


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stable-audio")
    cases.make_stable_audio().save_pretrained(folder)
    return folder


def test_a_wav_holds_the_sound_and_its_settings(tmp_path):
    sound = Waveform(tone(0.5, 16000, 2), 16000)
    save_sound(sound, tmp_path / "a.wav", {"prompt": 'a "bell" für dich', "seed": 3})
    found, _ = look_at(tmp_path / "a.wav")
    assert (found.rate, found.channels, found.codec) == (16000, 2, "pcm_s16le") and found.seconds == 0.5
    assert np.abs(beginning(tmp_path / "a.wav", 1).samples - sound.samples).max() < 2**-14
    about = read_about(tmp_path / "a.wav")
    assert about["prompt"] == 'a "bell" für dich' and about["seed"] == "3" and "fera" in about
    assert read_about(write_sound(tmp_path / "b.wav")) == {}


def test_what_a_page_plays_is_small(tmp_path):
    content = small_sound(Waveform(tone(2.0, 48000, 2), 48000))
    assert len(content) < 48000
    (tmp_path / "a.mp3").write_bytes(content)
    assert look_at(tmp_path / "a.mp3")[0].seconds == pytest.approx(2, abs=0.1)


def test_a_spectrogram_shows_when_and_how_high():
    """Silence, then a low tone, then a high one."""
    rate = 16000
    samples = np.concatenate([np.zeros((1, rate), "f4"), tone(1, rate, 1, 200), tone(1, rate, 1, 3000)], axis=1)
    picture = np.asarray(spectrogram(Waveform(samples, rate)).convert("L")).astype(int)
    assert picture.shape == (256, 512)
    silence, low, high = (picture[:, 170 * third + 40 : 170 * third + 130].mean(axis=1) for third in range(3))
    assert silence.max() < 5
    # Upward; mel(f) = 2595 log10(1 + f / 700), from 20 Hz to half the rate, as a part of the height.
    mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # noqa: E731
    for seen, hertz in ((low, 200), (high, 3000)):
        wanted = 256 * (1 - (mel(hertz) - mel(20)) / (mel(rate / 2) - mel(20)))
        assert abs(int(seen.argmax()) - wanted) < 6


@pytest.mark.parametrize("seconds", [1e-4, 0.01])
def test_short_and_silent_sounds_have_pictures_too(seconds):
    assert spectrogram(Waveform(tone(seconds, 8000, 2), 8000)).size == (512, 256)
    assert np.asarray(spectrogram(Waveform(np.zeros((1, 80), "f4"), 8000))).max() < 10


def test_a_sound_depends_on_its_prompt_and_seed_alone():
    pipe = cases.make_ace_step()
    call = {"num_inference_steps": 2, "seconds": 0.8}
    both = generate_sounds(pipe, ["a red rocket", "the sun and moon and a green tree"], **call)
    alone = generate_sounds(pipe, ["the sun and moon and a green tree"], seed=1, **call)
    assert np.array_equal(both[1].samples, alone[0].samples) and not np.array_equal(both[0].samples, both[1].samples)
    with pytest.raises(FeraError, match="`seconds` must lie above 0 and up to 600 with this base, got 601"):
        generate_sounds(pipe, ["a"], seconds=601.0)


def test_progress_and_late_adapters_hear_pipelines_with_the_old_callback():
    told = []
    pipe = cases.make_stable_audio()
    call = {"num_inference_steps": 3, "seconds": 0.006, "progress": lambda done, total: told.append((done, total))}
    generate_sounds(pipe, ["a", "b"], **call)
    assert told == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_the_command_writes_wavs_and_spectrograms(base, tmp_path, capsys):
    call = ["generate", "a red rocket", "the sun", "--base", str(base), "--steps", "1", "--seconds", "0.006"]
    assert main([*call, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out.split()
    wavs = sorted((tmp_path / "out").glob("*.wav"))
    assert [path.name for path in wavs] == ["000-a-red-rocket.wav", "001-the-sun.wav"]
    assert all(str(path) in printed for path in wavs)
    assert look_at(wavs[0])[0].rate == 8000 and look_at(wavs[0])[0].channels == 2
    settings = json.loads(read_about(wavs[1])["settings"])
    assert settings["prompt"] == "the sun" and settings["seed"] == 1 and settings["seconds"] == 0.006
    with Image.open(wavs[1].with_suffix(".png")) as image:
        assert image.size == (512, 256) and json.loads(image.text["settings"]) == settings
    assert json.loads((tmp_path / "out" / "generation.json").read_text())["seconds"] == 0.006
    assert main([*call, "--output", str(tmp_path / "out")]) == 2 and "already holds" in capsys.readouterr().err


def test_a_run_resumes_bit_for_bit_draws_sounds_and_is_reported(base, tmp_path):
    folder = sound_folder(tmp_path / "sounds", rate=8000, seconds=0.006)

    def config(name):
        return run_config(
            base,
            folder,
            tmp_path / name,
            data={"seconds": [0.003, 0.006], "cache_dir": tmp_path / "cache", "validation_fraction": 0.25},
            train={"steps": 4, "checkpointing_steps": 2, "batch_size": 2, "consistency_weight": 0.1},
            adapter={"r": 2, "kappa": "auto"},
            validation={"prompts": ["a red rocket"], "num_inference_steps": 2, "loss_samples": 2, "seconds": 0.005},
        )

    assert_resumes(config("straight"), config("stopped"), 2, "loss", "held_out_loss")
    samples = tmp_path / "straight" / "samples"
    assert look_at(samples / "step-000004-000.wav")[0].seconds == 0.005
    assert json.loads((samples / "step-000004.json").read_text())["seconds"] == 0.005
    page = write_report(ReportRequest(tmp_path / "straight", draw=False)).read_text(encoding="utf-8")
    # Those that were trained on, and of the first and the last step.
    assert len(re.findall(r'<audio [^>]*src="data:audio/mpeg;base64,', page)) == 3 + 2
    assert "media-src data:" in page
    drawn = write_report(ReportRequest(tmp_path / "straight", tmp_path / "drawn.html")).read_text(encoding="utf-8")
    assert "a red rocket, drawn with the adapter" in drawn


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.seconds": "9"}, "data.seconds is 9, but this base makes 0.008 s at most"),
        ({"data.num_frames": "5"}, "data.num_frames is not for sounds"),
        ({"train.noise_offset": "0.1"}, "train.noise_offset is for pictures"),
    ],
)
def test_what_cannot_be_trained_is_one_error(base, tmp_path, capsys, changes, words):
    folder = sound_folder(tmp_path / "sounds", rate=8000, seconds=0.006)
    (tmp_path / "run.toml").write_text(
        to_toml(run_config(base, folder, tmp_path / "run", data={"seconds": [0.006]}, train={"steps": 1}))
    )
    flags = [part for name, value in changes.items() for part in (f"--{name}", value)]
    for command in (["train"], ["data", "check"]):
        assert main([*command, str(tmp_path / "run.toml"), *flags]) == 2
        captured = capsys.readouterr()
        assert words in " ".join((captured.err + captured.out).split())
    assert not (tmp_path / "run" / "adapter").exists()


def test_evaluation_of_sound_is_refused(tmp_path):
    with pytest.raises(FeraError, match="fera evaluate looks at pictures, and StableAudioPipeline makes sound"):
        evaluate(cases.make_stable_audio(), tmp_path)


def test_the_check_with_a_base_says_what_it_will_cost(base, tmp_path, capsys):
    folder = sound_folder(tmp_path / "sounds", rate=8000, seconds=0.006)
    (tmp_path / "run.toml").write_text(
        to_toml(run_config(base, folder, tmp_path / "run", data={"seconds": [0.006]}, train={"steps": 2}))
    )
    assert main(["data", "check", str(tmp_path / "run.toml"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["estimates"]["latents"] == 4 and report["estimates"]["step_seconds"] > 0
    assert report["buckets"] == ["0.008 s: 4 sounds, 2 batches"]
    assert report["listing"][0]["sound"]["trained_channels"] == 2
