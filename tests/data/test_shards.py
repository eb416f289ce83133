"""The cache as files: shards, what earlier trees wrote, damage, several processes, kills."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from cache_cases import entries
from crash_cases import events_of, kill_after, kill_at_event, kill_in_a_file, run
from PIL import Image
from safetensors.torch import save_file

from fera import FeraError
from fera.config import DataConfig
from fera.data.cache import shards
from fera.data.cache.cache import Cache
from fera.data.cache.encoder import Encoder
from fera.data.cache.share import Share
from fera.data.checking import check_images, find_examples
from fera.models.families import family_of
from fera.pipelines.base import load_base


@pytest.fixture(scope="module")
def pipe(tiny_sd_dir):
    return load_base(str(tiny_sd_dir))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Twelve pictures with captions of their own."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        Image.effect_noise((16, 16), 10 + number).convert("RGB").save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"noise {number}")
    return check_images(find_examples(folder, DataConfig(train_data_dir=folder)), skip_bad=False)[0]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "_ENTRIES", 3)


def encode(pipe, examples, folder: Path, share: Share | None = None, said: list[str] | None = None):
    """The encoded set, and how much was missing."""
    counts: dict[str, int] = {}
    encoder = Encoder(
        pipe=pipe,
        family=family_of(pipe),
        folder=folder,
        device=torch.device("cpu"),
        buckets=[(16, 16)],
        center_crop=True,
        random_flip=False,
        seed=0,
        progress=lambda what, done, total: counts.update({what: total}),
        share=share or Share(),
        say=(said if said is not None else []).append,
    )
    return encoder.encode(examples), counts


def assert_same(one: Path, other: Path) -> None:
    first, second = entries(one), entries(other)
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, second[name][key], rtol=1e-5, atol=1e-6)


def test_many_entries_lie_in_few_files(pipe, examples, tmp_path):
    encode(pipe, examples, tmp_path / "cache")
    files = sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir())
    assert files == ["latents", "texts"]
    assert len(entries(tmp_path / "cache", "latent")) == 12
    assert len(entries(tmp_path / "cache", "text")) == 13


def test_shards_have_a_limit(pipe, examples, tmp_path, small_shards):
    encode(pipe, examples, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("latents-*"))) == 4
    assert len(list((tmp_path / "cache").glob("texts-*"))) == 5
    assert encode(pipe, examples, tmp_path / "cache")[1] == {}


def test_more_shards_than_stay_open(pipe, examples, tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN", 2)
    encoded, _ = encode(pipe, examples, tmp_path / "cache")
    encoded.cache._left = 0  # nothing is kept once it was read
    rows = [11, 0, 5, 7, 2, 9]
    expected = torch.stack([encoded.latent(row) for row in rows])
    assert torch.equal(encoded.batch(rows).latents, expected)
    assert len(encoded.cache._reader._open) == 2


def test_files_of_before_are_found_and_kept(pipe, examples, tmp_path):
    """As earlier trees wrote them: a file an entry, named by it."""
    encoded, _ = encode(pipe, examples, tmp_path / "new")
    old = tmp_path / "old"
    old.mkdir()
    for name, tensors in entries(tmp_path / "new").items():
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, old / f"{name}.safetensors")
    before = sorted(path.name for path in old.iterdir())
    found, counts = encode(pipe, examples, old)
    assert counts == {} and found == encoded
    assert sorted(path.name for path in old.iterdir()) == before
    assert torch.equal(found.batch([3, 1]).latents, encoded.batch([3, 1]).latents)
    # Some of them alone: the others come as a shard, and both are read.
    for path in list(old.iterdir())[::2]:
        path.unlink()
    found, counts = encode(pipe, examples, old)
    assert sum(counts.values()) == 13
    assert_same(old, tmp_path / "new")


@pytest.mark.parametrize("damage", ["cut", "empty", "header"])
def test_a_shard_that_is_damaged_is_encoded_anew(pipe, examples, tmp_path, small_shards, damage):
    encode(pipe, examples, tmp_path / "cache")
    shutil.copytree(tmp_path / "cache", tmp_path / "whole")
    shard = sorted((tmp_path / "cache").glob("latents-*"))[1]
    whole = shard.read_bytes()
    shard.write_bytes({"cut": whole[:-10], "empty": b"", "header": b"\xff" * 40 + whole[40:]}[damage])
    said: list[str] = []
    _, counts = encode(pipe, examples, tmp_path / "cache", said=said)
    assert counts == {"pictures": 3}
    assert len(said) == 1 and str(shard) in said[0] and "encoded anew" in said[0]
    assert shard.read_bytes()[8:40] == whole[8:40], "the same entries make the same file"
    assert_same(tmp_path / "cache", tmp_path / "whole")


def test_a_shard_whose_content_is_damaged_is_named_when_it_is_read(pipe, examples, tmp_path):
    encoded, _ = encode(pipe, examples, tmp_path / "cache")
    (shard,) = (tmp_path / "cache").glob("latents-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    encoded, counts = encode(pipe, examples, tmp_path / "cache")
    assert counts == {}
    with pytest.raises(FeraError, match=rf"{shard.name} cannot be read .*not what was written.*delete it"):
        encoded.batch(range(12))
    shard.unlink()
    assert encode(pipe, examples, tmp_path / "cache")[1] == {"pictures": 12}


def test_a_disk_that_fills_keeps_the_shards_before(pipe, examples, tmp_path, small_shards, monkeypatch):
    real, written = save_file, []

    def full(tensors, path, *rest):
        if len(written) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, os.strerror(28))
        written.append(path)
        real(tensors, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("fera.data.cache.store.save_file", full)
        with pytest.raises(FeraError, match=r"cannot write to the cache, .*No space left.*encoded already is kept"):
            encode(pipe, examples, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2, "nothing half-written stays"
    _, counts = encode(pipe, examples, tmp_path / "cache")
    assert counts == {"captions": 13 - 6, "pictures": 12}


def test_what_waits_is_written_when_encoding_breaks_off(pipe, examples, tmp_path, monkeypatch):
    """Ctrl-C, a picture that vanished: what was computed is kept."""
    from fera.data.cache import latents

    real, seen = latents.pixels_of, []

    def vanishing(picture):
        seen.append(picture)
        if len(seen) > 9:
            raise FeraError(f"{picture.image} is gone")
        return real(picture)

    with monkeypatch.context() as patch:
        patch.setattr(latents, "pixels_of", vanishing)
        with pytest.raises(FeraError, match="is gone"):
            encode(pipe, examples, tmp_path / "cache")
    assert encode(pipe, examples, tmp_path / "cache")[1] == {"pictures": 4}


def test_a_cache_that_moves_or_is_swapped_is_read_as_it_is(pipe, examples, tmp_path):
    """There is no index beside the shards that could tell of another folder."""
    encode(pipe, examples[:6], tmp_path / "one")
    encode(pipe, examples[6:], tmp_path / "two")
    for old, new in (("one", "away"), ("two", "one"), ("away", "two")):
        (tmp_path / old).rename(tmp_path / new)
    assert encode(pipe, examples[:6], tmp_path / "two")[1] == {}
    assert encode(pipe, examples[:6], tmp_path / "one")[1] == {"captions": 6, "pictures": 6}
    # Files of one folder that are copied into another serve there.
    shutil.copytree(tmp_path / "two", tmp_path / "both")
    shutil.copytree(tmp_path / "one", tmp_path / "both", dirs_exist_ok=True)
    assert encode(pipe, examples, tmp_path / "both")[1] == {}


def test_a_changed_picture_is_encoded_again_and_no_other(pipe, examples, tmp_path):
    folder = tmp_path / "pictures"
    shutil.copytree(examples[0].image.parent, folder)
    config = DataConfig(train_data_dir=folder)
    encode(pipe, check_images(find_examples(folder, config), skip_bad=False)[0], tmp_path / "cache")
    Image.effect_noise((16, 16), 90).convert("RGB").save(folder / "03.png")
    again = check_images(find_examples(folder, config), skip_bad=False)[0]
    assert encode(pipe, again, tmp_path / "cache")[1] == {"pictures": 1}


def test_parts_do_not_overlap_and_make_a_whole(pipe, examples, tmp_path):
    encode(pipe, examples, tmp_path / "whole")
    counted = [encode(pipe, examples, tmp_path / "cache", Share(number, 3))[1] for number in range(3)]
    assert sum(one.get("pictures", 0) for one in counted) == 12
    assert sum(one.get("captions", 0) for one in counted) == 13
    assert_same(tmp_path / "cache", tmp_path / "whole")
    # A part depends on no other: not even on what is there.
    for number in range(3):
        encode(pipe, examples, tmp_path / "apart" / str(number), Share(number, 3))
    for number in range(3):
        shutil.copytree(tmp_path / "apart" / str(number), tmp_path / "joined", dirs_exist_ok=True)
    assert encode(pipe, examples, tmp_path / "joined")[1] == {}


def test_what_another_process_did_not_do_is_done(pipe, examples, tmp_path):
    waited = []
    share = Share(0, 2, wait=lambda: waited.append(True), has_others=True)
    encoded, _ = encode(pipe, examples, tmp_path / "cache", share)
    assert waited == [True]
    assert len(encoded.batch(range(12)).names) == 12
    assert encode(pipe, examples, tmp_path / "cache")[1] == {}


def test_entries_that_others_encode_are_found_after_waiting(pipe, examples, tmp_path):
    def others():
        encode(pipe, examples, tmp_path / "cache", Share(1, 2))

    _, counts = encode(pipe, examples, tmp_path / "cache", Share(0, 2, wait=others, has_others=True))
    assert counts["pictures"] < 12
    assert len(entries(tmp_path / "cache", "latent")) == 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("count", [2, pytest.param(24, marks=pytest.mark.slow)])
def test_killed_while_encoding(pipe, examples, tmp_path, small_shards, count):
    """At any file operation: the same command finishes, and the cache is as if nothing had happened."""
    torch.set_num_threads(1)  # of a forked process, which has none of its parent's
    work = tmp_path / "straight"
    events = events_of(lambda: encode(pipe, examples, work), work, tmp_path / "events")
    for number in random.Random(4).sample(range(len(events)), count):
        folder = tmp_path / f"killed-{number}"
        assert kill_at_event(lambda folder=folder: encode(pipe, examples, folder), folder, number) == -9
        assert run(lambda folder=folder: encode(pipe, examples, folder)) == 0
        assert_same(folder, work)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_again_and_again_and_in_the_midst_of_a_shard(pipe, examples, tmp_path, small_shards):
    torch.set_num_threads(1)
    encode(pipe, examples, tmp_path / "straight")
    generator = random.Random(5)
    largest = max(path.stat().st_size for path in (tmp_path / "straight").iterdir())
    folder = tmp_path / "killed"
    for _ in range(10):
        kill_after(lambda: encode(pipe, examples, folder), generator.uniform(0.01, 0.3))
    for size in generator.sample(range(500, largest), 4):
        assert kill_in_a_file(lambda: encode(pipe, examples, tmp_path / "cut"), size) in (-25, 0)
    for killed in (folder, tmp_path / "cut"):
        assert run(lambda killed=killed: encode(pipe, examples, killed)) == 0
        assert_same(killed, tmp_path / "straight")


def test_an_entry_that_is_gone_is_named(tmp_path):
    cache = Cache(tmp_path / "nowhere", print)
    with pytest.raises(FeraError, match="holds no latent-1 any more"):
        cache.read("latent-1")


def test_a_file_that_is_no_shard_of_ours_is_left_alone(pipe, examples, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "notes.safetensors").write_bytes(b"x")
    said: list[str] = []
    encode(pipe, examples[:2], tmp_path / "cache", said=said)
    assert said == [] and (tmp_path / "cache" / "notes.safetensors").read_bytes() == b"x"
