"""Class pictures beside the subject's: drawn where missing, mixed evenly, weighted."""

import io

import numpy as np
import pytest
import torch
from listeners import train
from PIL import Image
from training_cases import assert_resumes, log_of, run_config

from fera import FeraError, generation
from fera.cli.main import main
from fera.data.example import Example
from fera.pipelines.base import load_base
from fera.training import to_toml
from fera.training.start.class_pictures import mixed, prepare_class_images
from fera.training.trainer import Trainer


def test_both_are_seen_equally_often():
    subject, others = [Example(name, "") for name in map(path, "abc")], [Example(name, "") for name in map(path, "xy")]
    names = [example.name for example in mixed(subject, others)]
    assert sorted(names) == ["a", "b", "c", "x", "x", "y"]
    assert sorted(example.name for example in mixed(others, subject)) == ["a", "b", "c", "x", "x", "y"]
    assert mixed(subject, []) == subject


def path(name):
    from pathlib import Path

    return Path(name)


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    def make(name="run", data=None, **train_settings):
        settings = {
            "class_data_dir": tmp_path / "class",
            "class_prompt": "a blue house",
            "num_class_images": 5,
            "prior_loss_weight": 0.5,
        }
        return run_config(
            tiny_sd_dir,
            image_folder,
            tmp_path / name,
            data=settings | (data or {}),
            train={"steps": 4, "caption_dropout": 0.3} | train_settings,
            validation={"num_inference_steps": 2},
        )

    return make


def test_missing_ones_are_drawn_and_half_of_what_is_seen(configure, tmp_path, monkeypatch):
    weights = []
    losses = Trainer._losses

    def spy(self, batch, conditions):
        found = losses(self, batch, conditions)
        weights.append(len(batch.latents))
        return found

    monkeypatch.setattr(Trainer, "_losses", spy)
    config = configure()
    summary = train(config)
    drawn = sorted((tmp_path / "class").iterdir())
    assert [picture.name for picture in drawn] == [f"class-{number:05d}.png" for number in range(5)]
    assert summary.training_pictures == 10 and len(log_of(config, "loss")) == 4
    # They stay; one that was removed is drawn again, and no other.
    before = {picture: picture.stat().st_mtime_ns for picture in drawn}
    drawn[-1].unlink()
    train(configure("again"))
    assert {p: p.stat().st_mtime_ns for p in drawn[:-1]} == {p: before[p] for p in drawn[:-1]} and drawn[-1].exists()


def test_what_an_interruption_left_is_not_drawn_again(configure, tmp_path, tiny_sd_dir, monkeypatch):
    folder = tmp_path / "class"
    told = []

    class Silent:
        def say(self, text):
            pass

        def advance(self, what, done, total):
            told.append((what, done, total))

    def prepare(count=7):
        config = configure(data={"num_class_images": count})
        pipe = load_base(str(tiny_sd_dir), revision=None, variant=None, dtype=torch.float32)
        prepare_class_images(pipe, config, 16, torch.device("cpu"), Silent())
        return {picture.name: picture.stat().st_mtime_ns for picture in folder.iterdir()}

    save = generation.save_image

    def stop(image, path, metadata):
        if "00002" in path.name:
            path.write_bytes(b"half a pict")
            raise KeyboardInterrupt
        save(image, path, metadata)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(generation, "save_image", stop)
        prepare()
    first = {picture.name: picture.stat().st_mtime_ns for picture in folder.iterdir()}
    assert sorted(first) == ["class-00000.png", "class-00001.png"] and told == []
    second = prepare()
    assert len(second) == 7 and first.items() <= second.items()
    assert told == [("class pictures", 4, 5), ("class pictures", 5, 5)]
    # Pictures removed from the middle come back as they were; no other is touched.
    before = {name: (folder / name).read_bytes() for name in second}
    for number in (1, 2, 5):
        (folder / f"class-{number:05d}.png").unlink()
    third = prepare()
    removed = {f"class-{number:05d}.png" for number in (1, 2, 5)}
    assert third.keys() == second.keys() and {name for name in third if third[name] != second[name]} == removed
    for name in removed:
        pixels = [np.asarray(Image.open(source)).astype(int) for source in (io.BytesIO(before[name]), folder / name)]
        assert abs(pixels[0] - pixels[1]).max() <= 1  # up to rounding of another batch
    # Pictures of the user's count too.
    for number in (0, 3):
        (folder / f"class-{number:05d}.png").rename(folder / f"own-{number}.png")
    assert len(prepare(8)) == 8


def test_resumed_run_equals_an_uninterrupted_one(configure):
    data = {"shuffle_caption": True, "trigger_word": "w", "random_flip": True}
    straight, stopped = (configure(name, data, checkpointing_steps=1) for name in ("straight", "stopped"))
    assert_resumes(straight, stopped, 2)


def test_what_cannot_work(configure, tmp_path, image_folder, capsys):
    with pytest.raises(FeraError, match="class_data_dir is the training folder"):
        train(configure(data={"class_data_dir": image_folder}))
    config = configure(data={"num_class_images": 0})
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert main(["train", str(tmp_path / "config.toml")]) == 2
    assert "class does not exist" in capsys.readouterr().err
