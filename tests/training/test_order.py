"""What a run sees, and how often: over epochs, between lists of different lengths, and after a change of the batch."""

from collections import Counter

import pytest
import torch
from listeners import train
from PIL import Image
from training_cases import log_of, run_config

from fera.training.folder.manifest import MANIFEST, read_manifest, write_manifest
from fera.training.step.order import Bucketed, Stream, Turns
from fera.training.trainer import Trainer


def orders(lengths, batch_size):
    """Both kinds of orders over two lists; pictures have three sizes."""
    turns = Turns(lengths)
    sizes = [((8, 8), (8, 16), (16, 8))[row % 3] for row in range(turns.slots)]
    return [Stream(turns.slots, batch_size, 5, turns), Bucketed(sizes, batch_size, 5, turns)]


@pytest.mark.parametrize("lengths", [(60, 100), (7, 3), (5, 5), (1, 4)])
def test_the_shorter_list_goes_round_evenly(lengths):
    longest = max(lengths)
    for order in orders(lengths, 4):
        seen, place = [], 0
        while len(seen) < 2 * longest * 5:  # five epochs
            seen += order.rows(place)
            assert order.samples_before(place + 1) == len(seen)
            place += 1
        looks = Counter(seen[: 2 * longest * 5])
        for start, length in zip((0, longest), lengths, strict=True):
            counts = [looks.pop(start + row) for row in range(length)]
            assert sum(counts) == 5 * longest and max(counts) - min(counts) <= 1
        assert not looks, "rows beyond a list's length only fill the list up"


def test_where_to_go_on_with_other_batches():
    for order in orders((4, 7), 3):
        for samples in range(40):
            place = order.place_after(samples)
            assert order.samples_before(place) >= samples
            assert place == 0 or order.samples_before(place - 1) < samples


@pytest.fixture
def seen(monkeypatch):
    """Names of the pictures in each batch of the runs to come, and how their samples were noised."""
    batches = []
    losses = Trainer._losses

    def spy(self, batch, conditions):
        batches.append((batch.names, batch.noise.clone()))
        return losses(self, batch, conditions)

    monkeypatch.setattr(Trainer, "_losses", spy)
    return batches


@pytest.mark.parametrize("enable_bucket", [False, True])
def test_class_pictures_are_seen_evenly(tiny_sd_dir, image_folder, tmp_path, seen, enable_bucket):
    """Four of the subject and six of the class: over two epochs three looks at each of the one, two of the other."""
    (tmp_path / "class").mkdir()
    for number in range(6):
        size = (16, 20) if number < 2 else (20, 16)
        Image.new("RGB", size, (40 * number, 0, 0)).save(tmp_path / "class" / f"class-{number}.png")
    data = {"class_data_dir": tmp_path / "class", "class_prompt": "a house", "enable_bucket": enable_bucket}
    settings = {"steps": 24, "batch_size": 1}
    summary = train(run_config(tiny_sd_dir, image_folder, tmp_path / "run", data=data, train=settings))
    looks = Counter(name for names, _ in seen for name in names)
    assert looks == {**{f"{n}.png": 3 for n in range(4)}, **{f"class-{n}.png": 2 for n in range(6)}}
    assert summary.samples == 24


def test_class_pictures_of_a_repeated_folder_are_seen_as_often(tiny_sd_dir, image_folder, tmp_path, seen):
    for folder, color in (("3_dog", "red"), ("1_cat", "blue")):
        (tmp_path / "class" / folder).mkdir(parents=True)
        Image.new("RGB", (20, 16), color).save(tmp_path / "class" / folder / f"{folder}.png")
    data = {"class_data_dir": tmp_path / "class"}
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "run", data=data, train={"steps": 8, "batch_size": 1}))
    looks = Counter(names[0].rpartition("/")[2] for names, _ in seen)
    assert looks["3_dog.png"] == 3 and looks["1_cat.png"] == 1


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 1), (2, 4)])
def test_a_changed_batch_size_goes_on_with_what_was_not_seen(
    tiny_sd_dir, image_folder, tmp_path, seen, capsys, before, after
):
    def configured(steps: int, batch_size: int):
        settings = {"steps": steps, "batch_size": batch_size, "learning_rate": 1e-4}
        return run_config(tiny_sd_dir, image_folder, tmp_path / "run", train=settings)

    train(configured(4, before))
    capsys.readouterr()
    summary = train(configured(7, after), resume=True, allow=["train.batch_size"])
    assert summary.samples == 4 * before + 3 * after
    assert f"epoch {4 * before / 4:.2f}" in " ".join(capsys.readouterr().err.split())
    assert len(log_of(configured(7, after), "loss")) == 7
    noises = torch.cat([noise for _, noise in seen]).flatten(1)
    assert len(noises) == 4 * before + 3 * after
    assert len(noises.unique(dim=0)) == len(noises), "no sample was seen twice with the same noise"


def test_changed_accumulation_goes_on_with_the_next_batch(tiny_sd_dir, image_folder, tmp_path, seen):
    def configured(steps: int, accumulation: int):
        settings = {"steps": steps, "batch_size": 1, "gradient_accumulation_steps": accumulation}
        return run_config(tiny_sd_dir, image_folder, tmp_path / "run", train=settings)

    train(configured(4, 1))
    name = "train.gradient_accumulation_steps"
    summary = train(configured(6, 2), resume=True, allow=[name])
    assert summary.samples == 8
    assert Counter(name for names, _ in seen for name in names) == {f"{number}.png": 2 for number in range(4)}


def test_checkpoints_that_kept_no_count_of_samples(tiny_sd_dir, image_folder, tmp_path):
    def configured(steps: int):
        return run_config(tiny_sd_dir, image_folder, tmp_path / "run", train={"steps": steps, "batch_size": 3})

    train(configured(4))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000004"
    state = torch.load(checkpoint / "state.pt")
    assert (state.pop("samples"), state.pop("place")) == (12, 4)
    torch.save(state, checkpoint / "state.pt")
    about = {name: read_manifest(checkpoint)[name] for name in ("format_version", "step")}
    (checkpoint / MANIFEST).unlink()
    write_manifest(checkpoint, about)
    assert train(configured(6), resume=True).samples == 18
