"""Training on pictures of several sizes and aspects."""

import json
import math
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from cache_cases import entries
from hypothesis import given, settings
from hypothesis import strategies as st
from listeners import train
from PIL import Image
from pydantic import ValidationError
from training_cases import (
    MIXED,
    assert_resumes,
    assert_same_adapter,
    log_of,
    mixed_folder,
    power_cut,
    run_config,
)

import fera
from fera import FeraError
from fera.data.buckets import bucket_sizes, default_step, describe_buckets, nearest_bucket
from fera.data.tensors import to_tensor
from fera.generation import generate
from fera.pipelines.base import load_base
from fera.training import DataConfig, TrainConfig, to_toml
from fera.training.folder.manifest import write_manifest
from fera.training.start import opening as sources
from fera.training.step.order import Bucketed
from fera.training.trainer import Trainer

BUCKETED = {"enable_bucket": True, "center_crop": True}


@pytest.mark.parametrize(("resolution", "step"), [(16, 2), (64, 8), (512, 64), (1024, 128), (60, 16)])
def test_buckets_span_the_aspects_at_one_area(resolution, step):
    sizes = bucket_sizes(resolution, step)
    assert (resolution, resolution) in sizes and len(set(sizes)) == len(sizes)
    assert {size[::-1] for size in sizes} == set(sizes)
    aspects = [width / height for width, height in sizes]
    assert aspects == sorted(aspects) and aspects[-1] <= 4
    for width, height in set(sizes) - {(resolution, resolution)}:
        assert width % step == height % step == 0
        assert resolution**2 - step * max(width, height) < width * height <= resolution**2


def test_buckets_of_a_common_base():
    assert bucket_sizes(512, 64)[:5] == [(256, 1024), (320, 768), (384, 640), (448, 576), (512, 512)]


@settings(max_examples=50, deadline=None)
@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_a_picture_goes_where_it_loses_least(width, height):
    sizes = bucket_sizes(64, 8)
    chosen = nearest_bucket((width, height), sizes)

    def kept(size):
        scale = max(size[0] / width, size[1] / height)
        return size[0] * size[1] / (width * height * scale**2)

    assert kept(chosen) == pytest.approx(max(kept(size) for size in sizes))
    assert nearest_bucket((height, width), sizes) == chosen[::-1]


def test_picture_covers_its_bucket_without_distortion():
    image = Image.new("RGB", (40, 40), "black")
    image.paste("white", (0, 0, 40, 20))
    tall, wide = to_tensor(image, (10, 20)), to_tensor(image, (20, 10), 1.0)
    assert tall.shape == (3, 20, 10) and wide.shape == (3, 10, 20)
    assert (tall[:, :8] > 0.9).all() and (tall[:, 12:] < -0.9).all()
    assert (wide[:, 2:] < -0.9).all()


def test_report_says_what_is_where():
    assert describe_buckets([(16, 16)] * 5 + [(8, 32)] + [(32, 8)] * 4, 2) == [
        "8 x 32: 1 picture, 1 batch, the last of 1",
        "16 x 16: 5 pictures, 3 batches, the last of 1",
        "32 x 8: 4 pictures, 2 batches",
    ]


def test_every_epoch_sees_every_picture_once_in_batches_of_one_size():
    sizes = [(8, 16)] * 5 + [(16, 8)] * 3 + [(12, 12)] * 4
    order = Bucketed(sizes, 2, seed=3)
    epochs = [[order.rows(place) for place in range(start, start + 7)] for start in (0, 7, 14)]
    for batches in epochs:
        assert sorted(row for rows in batches for row in rows) == list(range(12))
        assert all(len({sizes[row] for row in rows}) == 1 for rows in batches)
        assert sorted(len(rows) for rows in batches) == [1, 1, 2, 2, 2, 2, 2]
    assert epochs[0] != epochs[1]
    assert Bucketed(sizes, 2, seed=3).rows(16) == epochs[2][2] and Bucketed(sizes, 2, seed=4).rows(0) != epochs[0][0]
    seen = [sum(len(order.rows(earlier)) for earlier in range(place)) for place in range(20)]
    assert [order.samples_before(place) for place in range(20)] == seen


@pytest.mark.parametrize(
    ("resolution", "multiple", "step"),
    [(1024, 8, 64), (1024, 16, 64), (768, 8, 64), (512, 8, 64), (64, 8, 8), (16, 2, 2)],
)
def test_the_default_step(resolution, multiple, step):
    assert default_step(resolution, multiple) == step


@pytest.mark.parametrize("size", [(832, 1216), (1216, 832), (896, 1152), (768, 1344), (640, 1600), (1024, 1024)])
def test_usual_sizes_are_kept_whole(size):
    assert nearest_bucket(size, bucket_sizes(1024, default_step(1024, 8))) == size


@pytest.fixture
def configure(tiny_sd_dir, tmp_path):
    pictures = mixed_folder(tmp_path / "mixed")

    def make(name: str, **sections: dict) -> TrainConfig:
        sections["data"] = BUCKETED | sections.get("data", {})
        return run_config(tiny_sd_dir, pictures, tmp_path / name, **sections)

    return make


def test_tall_wide_and_square_pictures_train_together(configure, monkeypatch, capsys, tiny_sd_dir):
    shapes = []
    losses = Trainer._losses
    monkeypatch.setattr(
        Trainer,
        "_losses",
        lambda self, batch, *others: (
            shapes.append(tuple(batch.latents.shape)),
            losses(self, batch, *others),
        )[1],
    )
    config = configure("run", train={"steps": 10, "consistency_weight": 0.1})
    summary = train(config)
    # Two epochs: latents are half the pictures' size, and 1:2 pictures are nearest to 12 x 20.
    assert Counter(shapes) == {
        **{(2, 4, 10, 6): 2, (1, 4, 10, 6): 2, (1, 4, 6, 10): 2},
        **{(2, 4, 8, 8): 2, (1, 4, 8, 8): 2},
    }
    assert summary.samples == 2 * sum(MIXED.values()) and summary.training_pictures == 7
    assert all(math.isfinite(loss) for loss in log_of(config, "loss"))
    said = capsys.readouterr().err
    assert "3 buckets" in said and "12 x 20: 3 pictures, 2 batches, the last of 1" in said
    assert "20 x 12: 1 picture, 1 batch, the last of 1" in said

    pipe = load_base(str(tiny_sd_dir))
    fera.load_adapter(pipe, config.output_dir)
    with fera.trace(pipe) as routings:
        image = generate(pipe, ["a red rocket"], num_inference_steps=3, height=24, width=40)[0]
    assert image.size == (40, 24) and len(routings) == 3
    assert all(routing.indicator.isfinite().all() for routing in routings)


def test_sizes_are_cached_apart_and_once(configure):
    config = configure("first", train={"steps": 1})
    train(config)
    latents = {name: held["mean"].shape[1:] for name, held in entries(config.data.cache_dir, "latent").items()}
    assert Counter(latents.values()) == {(10, 6): 3, (6, 10): 1, (8, 8): 3}
    train(configure("again", train={"steps": 1}))
    assert set(entries(config.data.cache_dir, "latent")) == set(latents)
    # The square pictures are found again, the others are other latents now.
    train(configure("squares", train={"steps": 1}, data={"enable_bucket": False}))
    assert len(entries(config.data.cache_dir, "latent")) == 7 + 4


def test_resumed_run_equals_an_uninterrupted_one(configure):
    sections = {
        "data": {"random_flip": True, "validation_fraction": 0.3, "center_crop": False},
        "train": {"gradient_accumulation_steps": 2, "checkpointing_steps": 3, "caption_dropout": 0.5},
    }
    straight, stopped = configure("straight", **sections), configure("stopped", **sections)
    whole, resumed = assert_resumes(straight, stopped, 4)
    assert resumed.samples == whole.samples and resumed.held_out_loss_after == whole.held_out_loss_after


def test_held_out_loss_of_mixed_sizes_does_not_depend_on_the_batch_size(configure):
    sections = {"data": {"validation_fraction": 0.5}, "validation": {"loss_samples": 9}}
    losses = [
        train(configure(f"by-{size}", **sections, train={"steps": 1, "batch_size": size})).held_out_loss_before
        for size in (1, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("consistency", [0.0, 0.5])
def test_a_picture_counts_the_same_in_any_batch(configure, monkeypatch, consistency):
    """One step over an epoch, by SGD without momentum: it moves weights by the mean gradient of all seven pictures."""
    gradients, before = [], {}
    rate, losses = 0.5, Trainer._losses

    def spied(self, batch, conditions):
        found = losses(self, batch, conditions)
        trained = {name: p for name, p in self._setup.denoiser.named_parameters() if p.requires_grad}
        before.update({name: p.detach().clone() for name, p in trained.items()})
        # The consistency loss is a mean over the batch, so it counts once for each of its samples.
        each = found.denoising.sum()
        if consistency:
            each = each + consistency * found.consistency * len(found.denoising)
        gradient = torch.autograd.grad(each, list(trained.values()), retain_graph=True, allow_unused=True)
        gradients.append((len(found.denoising), gradient))
        return found

    monkeypatch.setattr(Trainer, "_losses", spied)
    optimizer = {
        "optimizer": "torch.optim.SGD",
        "learning_rate": rate,
        "max_grad_norm": 1e9,
        "lr_scheduler": "constant",
    }
    accumulated = {"gradient_accumulation_steps": 5, "consistency_weight": consistency, "lr_warmup_steps": 0}
    config = configure("run", train={"steps": 1, "router_lr_ratio": None} | optimizer | accumulated)
    trained = {}
    finish = Trainer.finish

    def finishing(self, seconds):
        trained.update({n: p.detach().clone() for n, p in self._setup.denoiser.named_parameters() if p.requires_grad})
        return finish(self, seconds)

    monkeypatch.setattr(Trainer, "finish", finishing)
    train(config)
    assert sorted(count for count, _ in gradients) == [1, 1, 1, 2, 2]
    for index, (name, start) in enumerate(before.items()):
        summed = sum(one[index].double() for _, one in gradients if one[index] is not None)
        # Of five batches of two: what is not there counts as a loss of zero.
        expected = -rate * summed / (5 * 2)
        torch.testing.assert_close((trained[name] - start).double(), expected, rtol=1e-3, atol=1e-6, msg=name)


def test_a_run_that_began_with_another_default_goes_on_in_its_buckets(configure, monkeypatch, tmp_path):
    """Checkpoints of before held no step where none was set, and it was an eighth of the resolution."""
    assert default_step(1024, 8, former=True) == 128 and default_step(512, 8, former=True) == 64

    def with_step(name: str, step: int | None, steps: int = 4) -> TrainConfig:
        data = {"bucket_reso_steps": step} if step else {}
        return configure(name, data=data, train={"steps": steps, "checkpointing_steps": 2})

    # As if 16 were large: the former default is 4 pixels here, and the present one 2.
    monkeypatch.setattr(sources, "default_step", lambda *_sizes, former=False: 4 if former else 2)
    train(with_step("straight", 4))
    old = with_step("old", None)
    with power_cut(2), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "default_step", lambda *_sizes, former=False: 4)
        train(old)
    (checkpoint,) = (old.output_dir / "checkpoints").glob("step-*")
    held = json.loads((checkpoint / "config.json").read_text())
    assert held["data"]["bucket_reso_steps"] == 4  # settled, as every run does now
    held["data"]["bucket_reso_steps"] = None
    (checkpoint / "config.json").write_text(json.dumps(held, indent=2) + "\n")
    about = json.loads((checkpoint / "manifest.json").read_text())
    about.pop("files")
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint, about)
    with power_cut(3):
        train(old, resume=True)
    assert train(old, resume=True).samples > 0
    assert_same_adapter(with_step("straight", 4), old)
    # The new checkpoint names the step, a run that names none takes it, and another one has to be allowed.
    assert train(with_step("old", None, steps=5), resume=True).samples > 0
    assert (
        json.loads((checkpoint.with_name("step-000005") / "config.json").read_text())["data"]["bucket_reso_steps"] == 4
    )
    with pytest.raises(FeraError, match="bucket_reso_steps is 2, was 4"):
        train(with_step("old", 2, steps=6), resume=True)


def test_settings_that_do_not_fit(configure):
    with pytest.raises(ValidationError, match="bucket_reso_steps is set, but data.enable_bucket is off"):
        DataConfig(train_data_dir=".", bucket_reso_steps=8)
    for step in (3, 16):
        with pytest.raises(FeraError, match=f"bucket_reso_steps is {step}.*multiple of 2 below the resolution, 16"):
            train(configure("run", data={"bucket_reso_steps": step}))


def test_pictures_longer_than_the_longest_bucket_are_named(configure, capsys):
    config = configure("run", train={"steps": 1})
    Image.new("RGB", (100, 20), "red").save(config.data.train_data_dir / "banner.png")
    (config.data.train_data_dir / "banner.txt").write_text("a red rocket")
    train(config)
    assert "longer than 1:4 and are cropped to it: banner.png" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_take_batches_of_different_lengths(configure, tmp_path):
    config = configure("both", train={"steps": 5})
    (tmp_path / "both.toml").write_text(to_toml(config))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [*launch, "-m", "fera.cli", "train", str(tmp_path / "both.toml")], check=True, env=environment, timeout=900
    )
    assert json.loads((config.output_dir / "summary.json").read_text())["samples"] == 2 * sum(MIXED.values())
    assert all(math.isfinite(loss) for loss in log_of(config, "loss"))
