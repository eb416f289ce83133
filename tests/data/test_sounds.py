"""Sounds: what a look tells, what is decoded, resampled, cut and padded, what is refused."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from sound_cases import CODECS, sound_folder, tone, write_sound

from fera.cli.main import main
from fera.config import DataConfig
from fera.data.checking import check_images
from fera.data.example import Example
from fera.data.sounds.fitting import describe_fitting, describe_lengths, fit_sounds, sound_lengths
from fera.data.sounds.reading import look_at, samples_of
from fera.data.sounds.sound import Excerpt
from fera.data.sounds.sound import Sound as Found
from fera.data.sources import find, scan
from fera.errors import FeraError
from fera.models.sound import Sound

BASE = Sound(8000, 2, 100, 10.0, "duration", lambda seconds: int(seconds * 80), lambda *_: {}, told=True)


@pytest.mark.parametrize("suffix", CODECS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_look_and_the_samples(tmp_path, suffix, channels):
    path = write_sound(tmp_path / f"a{suffix}", 1.25, 16000, channels)
    sound, digest = look_at(path)
    assert sound.seconds == pytest.approx(1.25, abs=0.1) and sound.channels == channels and len(digest) == 64
    assert sound.rate == (48000 if suffix in (".ogg", ".opus") else 16000)
    samples = samples_of(path, Excerpt(16000, 16000, channels, 1.0, 1.0))
    assert samples.shape == (channels, 16000) and samples.dtype == np.float32 and np.abs(samples).max() <= 1
    # An encoder may shift the sound: its spectrum stays. A second long, a bin is a hertz.
    for channel, one in enumerate(samples):
        assert int(np.abs(np.fft.rfft(one)).argmax()) == pytest.approx(440 * 2**channel, abs=1)
        assert np.sqrt(np.square(one).mean()) == pytest.approx(0.5 / 2**0.5, rel=0.1)


def test_pcm_is_exact_but_for_its_bits(tmp_path):
    path = write_sound(tmp_path / "a.wav", 0.5, 16000, 2)
    samples = samples_of(path, Excerpt(8000, 16000, 2, 0.5, 0.5))
    assert np.abs(samples - tone(0.5, 16000, 2)).max() < 2**-14


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_another_rate_keeps_the_tone(tmp_path, rate):
    path = write_sound(tmp_path / "a.wav", 1.0, 16000)
    samples = samples_of(path, Excerpt(rate, rate, 1, 1.0, 1.0))[0]
    inside = slice(rate // 10, -rate // 10)
    assert np.abs(samples - tone(1.0, rate)[0])[inside].max() < 5e-3


def test_channels_are_made_the_bases(tmp_path):
    path = write_sound(tmp_path / "a.wav", 0.5, 16000, 2)
    mono = samples_of(path, Excerpt(8000, 16000, 1, 0.5, 0.5))
    assert np.abs(mono[0] - tone(0.5, 16000, 2).mean(axis=0)).max() < 1e-3
    path = write_sound(tmp_path / "b.wav", 0.5, 16000, 1)
    stereo = samples_of(path, Excerpt(8000, 16000, 2, 0.5, 0.5))
    assert np.array_equal(stereo[0], stereo[1]) and np.abs(stereo).max() > 0.49


def test_a_long_sound_is_cut_and_a_short_one_has_silence_behind_it(tmp_path):
    folder = sound_folder(tmp_path / "sounds")
    config = DataConfig(train_data_dir=folder, seconds=[1.0, 1.5])
    examples, _ = check_images(find(folder, config).examples, skip_bad=False, sounds=True)
    fitted = fit_sounds(examples, sound_lengths(config, BASE, "Pipeline"), BASE)
    found = {example.name: example.excerpt for example in fitted}
    assert found["a.wav"] == Excerpt(8000, 8000, 2, 1.0, 1.0)
    assert found["b.flac"] == Excerpt(12000, 8000, 2, 1.5, 1.5)
    assert found["d.wav"].samples == 8000 and found["d.wav"].told == 0.5
    samples = samples_of(folder / "d.wav", found["d.wav"])
    assert samples.shape == (2, 8000) and np.abs(samples[:, :3900]).max() > 0.4 and not samples[:, 4000:].any()
    assert describe_lengths(fitted, 2) == [
        "1 s: 3 sounds, 2 batches, the last of 1",
        "1.5 s: 1 sound, 1 batch, the last of 1",
    ]
    lines = describe_fitting(fitted)
    assert "1 of 4 sounds have silence behind them: d.wav" in lines
    assert "4 of 4 sounds are brought to another rate: a.wav, b.flac, c.mp3, d.wav" in lines
    assert "3 of 4 sounds are brought to other channels: a.wav, b.flac, c.mp3" in lines


def test_a_base_that_hears_no_lengths_is_told_that_of_the_latent():
    base = Sound(8000, 1, 100, 10.0, "audio_duration", lambda seconds: int(seconds * 80), lambda *_: {})
    (fitted,) = fit_sounds([Example(Path("a.wav"), "", sound=Found(0.5, 8000, 1, "flac"))], [2.0], base)
    assert fitted.excerpt == Excerpt(16000, 8000, 1, 0.5, 2.0)


@pytest.mark.parametrize(
    ("settings", "sound", "words"),
    [
        ({"seconds": [2.0]}, None, "data.seconds is set, but Pipeline makes no sound"),
        ({}, BASE, "Pipeline makes sound: set data.seconds"),
        ({"seconds": [2.0, 11.0]}, BASE, "data.seconds is 11, but this base makes 10 s at most"),
        ({"seconds": [0.02]}, BASE, "data.seconds is 0.02, too short for this base: its latent needs 0.025 s"),
    ],
)
def test_lengths_that_do_not_fit_the_base(tmp_path, settings, sound, words):
    with pytest.raises(FeraError, match=words):
        sound_lengths(DataConfig(train_data_dir=tmp_path, **settings), sound, "Pipeline")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seconds": [0.0]}, "data.seconds must be different numbers above 0"),
        ({"seconds": [1.0, 1.0]}, "data.seconds must be different numbers above 0"),
        ({"seconds": [1.0], "resolution": 64}, "data.resolution is not for sounds"),
        ({"seconds": [1.0], "num_frames": [5]}, "data.num_frames is not for sounds"),
        ({"seconds": [1.0], "random_flip": True}, "data.random_flip is not for sounds"),
    ],
)
def test_settings_of_pictures_are_refused(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        DataConfig(train_data_dir=tmp_path, **settings)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def broken_files(folder):
    """Names to what is wrong with each."""
    folder.mkdir()
    with wave.open(str(folder / "zero.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
    (folder / "empty.mp3").write_bytes(b"")
    (folder / "noise.flac").write_bytes(bytes(range(256)) * 8)
    (folder / "text.wav").write_text("no sound at all")
    cut(write_sound(folder / "cut.wav", 2.0), 0.5)
    cut(write_sound(folder / "cut.flac", 2.0), 0.5)
    cut(write_sound(folder / "cut.m4a", 2.0), 0.5)
    return {
        "zero.wav": "has zero length: there is no sound in it",
        "empty.mp3": r"is empty \(0 bytes\)",
        "noise.flac": "is damaged or no sound that can be read|has zero length",
        "text.wav": "is damaged or no sound that can be read",
        "cut.wav": "has a broken end: it breaks off after 0.999 s of 2",
        "cut.flac": "has a broken end|is damaged",
        "cut.m4a": "is damaged or no sound|has a broken end",
    }


def test_what_cannot_be_used_is_named(tmp_path):
    for name, words in broken_files(tmp_path / "bad").items():
        with pytest.raises(ValueError, match=words):
            look_at(tmp_path / "bad" / name)


def test_readers_that_open_other_files_are_not_chosen(tmp_path):
    write_sound(tmp_path / "a.wav")
    (tmp_path / "list.wav").write_text(f"ffconcat version 1.0\nfile '{tmp_path / 'a.wav'}'\n")
    with pytest.raises(ValueError, match="is damaged or no sound"):
        look_at(tmp_path / "list.wav")


def test_the_check_says_what_it_found_of_each_file(tmp_path, capsys):
    bad = tmp_path / "bad"
    names = broken_files(bad)
    write_sound(bad / "good.wav", 1.0)
    for name in [*names, "good.wav"]:
        (bad / name).with_suffix(".txt").write_text("a sound")
    assert main(["data", "check", str(bad), "--data.seconds", "2", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert len(report["bad"]) == len(names) and report["pictures"] == 1
    assert report["problems"] == [f"{len(names)} of 8 sounds in {bad} cannot be used"]
    assert report["listing"][0]["sound"]["codec"] == "pcm_s16le"
    assert main(["data", "check", str(bad), "--data.seconds", "2", "--data.skip_bad", "true", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "1, 1 s, 16000 Hz, 1 channel" in shown and "good.wav: 1 s, 16000 Hz, mono, pcm_s16le: a sound" in shown


def test_sounds_are_left_alone_unless_asked_for(tmp_path):
    folder = sound_folder(tmp_path / "sounds")
    with pytest.raises(FeraError, match="4 sounds are left alone: .*; set data.seconds to train on sound"):
        scan(folder, DataConfig(train_data_dir=folder))
    (tmp_path / "none").mkdir()
    with pytest.raises(FeraError, match="no sounds in .*Expected .aac"):
        scan(tmp_path / "none", DataConfig(train_data_dir=tmp_path / "none", seconds=[1.0]))


def test_rows_of_a_table_name_sounds(tmp_path):
    folder = sound_folder(tmp_path / "sounds")
    (folder / "metadata.jsonl").write_text('{"file_name": "b.flac", "text": "a tone"}\n')
    found = scan(folder, DataConfig(train_data_dir=folder, seconds=[1.0], allow_missing_captions=True))
    assert found.layout == "imagefolder" and found.examples[0].caption == "a tone" and len(found.examples) == 4
