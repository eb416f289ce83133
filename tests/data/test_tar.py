"""WebDataset: folders of tar archives."""

import io
import json
import tarfile
from functools import lru_cache
from pathlib import Path

import pytest
from listeners import train
from PIL import Image
from training_cases import run_config

from fera import FeraError
from fera.config import DataConfig
from fera.data.checking import check_images
from fera.data.sources import find, tar_index
from fera.data.sources import tar as tars


@lru_cache  # its noise is another one at each call
def png(number: int, kind: str = "PNG") -> bytes:
    held = io.BytesIO()
    Image.effect_noise((16, 16), 20 + number).convert("RGB").save(held, kind)
    return held.getvalue()


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two archives: captions of all kinds, pictures of two formats, and what is passed over."""
    monkeypatch.setenv("FERA_CACHE", str(tmp_path / "known"))
    monkeypatch.setattr(tar_index, "_SETTLED", 0.0)
    held = tmp_path / "pictures"
    write_tar(
        held / "shard-000000.tar",
        {
            "a/0001.png": png(1),
            "a/0001.txt": b"a red rocket\n",
            "a/0001.seg.png": png(8),
            "0002.json": json.dumps({"text": "a blue house", "width": 16}).encode(),
            "0002.jpg": png(2, "JPEG"),
        },
    )
    write_tar(held / "shard-000001.tar", {"0001.webp": png(3, "WEBP"), "0001.caption": b"a tree", "0001.cls": b"4"})
    return held


def found(folder, **changes):
    return find(folder, DataConfig(train_data_dir=folder, **changes))


def test_samples_in_their_order(folder):
    held = found(folder)
    assert held.layout == "tar"
    assert [(e.name, e.caption) for e in held.examples] == [
        ("shard-000000/a/0001", "a red rocket"),
        ("shard-000000/0002", "a blue house"),
        ("shard-000001/0001", "a tree"),
    ]
    assert held.examples[0].image.read_bytes() == png(1)
    assert held.examples[1].origin == f"0002 in {folder / 'shard-000000.tar'}"
    good, bad = check_images(held.examples, skip_bad=False)
    assert not bad and {example.size for example in good} == {(16, 16)}


def test_archives_in_data(folder, tmp_path):
    (tmp_path / "hub").mkdir()
    folder.rename(tmp_path / "hub" / "data")
    assert len(found(tmp_path / "hub").examples) == 3


def test_an_unchanged_archive_is_not_read_again(folder, monkeypatch):
    first = found(folder)
    read = []
    real = tars._read
    monkeypatch.setattr(tars, "_read", lambda path, store: read.append(path.name) or real(path, store))
    assert found(folder).examples == first.examples and read == []
    write_tar(folder / "shard-000001.tar", {"0001.png": png(5), "0001.txt": b"another"})
    assert found(folder).examples[-1].caption == "another" and read == ["shard-000001.tar"]
    first.examples[0].image.unlink()
    assert found(folder).examples[0].image.read_bytes() == png(1) and read[1:] == ["shard-000000.tar"]


def test_a_run_trains_on_it(folder, tiny_sd_dir, tmp_path):
    summary = train(run_config(tiny_sd_dir, folder, tmp_path / "run", train={"steps": 1}))
    assert summary.steps == 1


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"1.txt": b"a"}, r"1 in .*bad\.tar has no picture, and \.txt"),
        ({"1.png": png(1)}, "1 of 1 pictures .* have no caption"),
        ({"1.png": png(1), "1.jpg": png(1, "JPEG"), "1.txt": b"a"}, "has two pictures called 1"),
        ({"1.png": png(1), "1.json": b"{"}, r"the JSON of 1 in .*bad\.tar cannot be read"),
        ({"1.png": png(1), "1.json": b'{"text": 3}'}, "'text' must be text, got 3"),
        ({"1.png": png(1), "1.txt": b"\xff"}, r"1\.txt in .* is not UTF-8"),
        ({"1\x1b[2J.png": png(1)}, "control characters"),
        ({"1.cls": b"3"}, "no pictures in"),
    ],
)
def test_archives_that_cannot_be_used(tmp_path, monkeypatch, members, words):
    monkeypatch.setenv("FERA_CACHE", str(tmp_path / "known"))
    write_tar(tmp_path / "in" / "bad.tar", members)
    with pytest.raises(FeraError, match=words):
        found(tmp_path / "in")


def test_damage(folder, tmp_path):
    path = folder / "shard-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:700])
    with pytest.raises(FeraError, match=r"shard-000001\.tar"):
        found(folder)
    path.write_bytes(b"no archive at all" * 100)
    with pytest.raises(FeraError, match="no tar archive that can be read"):
        found(folder)
    write_tar(path, {"1.png": png(1), "1.txt": b"a"}, "w:gz")
    with pytest.raises(FeraError, match="unpack compressed ones"):
        found(folder)


def test_nothing_is_written_where_a_member_says(folder, tmp_path):
    """Names lead nowhere: they are names of samples."""
    write_tar(folder / "shard-000002.tar", {"../../out.png": png(6), "../../out.txt": b"x", "/abs.png": png(7)})
    held = found(folder, allow_missing_captions=True)
    assert [example.name for example in held.examples[3:]] == ["shard-000002/../../out", "shard-000002//abs"]
    assert all(tmp_path / "known" in example.image.parents for example in held.examples)
    assert not (tmp_path.parent / "out.png").exists() and not (tmp_path / "out.png").exists()


def test_links_and_large_members_are_not_read(folder, monkeypatch):
    with tarfile.open(folder / "shard-000003.tar", "w") as archive:
        member = tarfile.TarInfo("9.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    assert len(found(folder).examples) == 3
    monkeypatch.setattr(tars, "_PICTURE_BYTES", 10)
    (folder / "shard-000000.tar").touch()
    with pytest.raises(FeraError, match="more than 10"):
        found(folder)
