"""Pictures that were read before are not read again, unless anything says that they changed."""

import os
import sqlite3
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fera import FeraError
from fera.config import DataConfig
from fera.data import checking
from fera.data.checking import check_images, find_examples, sift_images
from fera.data.example import Example
from fera.data.index import Known, PictureIndex, stamp_of, user_index
from fera.data.masks import add_masks


@pytest.fixture
def index(tmp_path):
    return PictureIndex(tmp_path / "kept" / "pictures.sqlite", settled=0)


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were decoded, pictures and masks."""
    names = []

    def noting(load, path_of):
        def loading(what):
            names.append(path_of(what).name)
            return load(what)

        return loading

    monkeypatch.setattr(checking, "load_image", noting(checking.load_image, lambda path: path))
    monkeypatch.setattr(checking, "load_mask", noting(checking.load_mask, lambda example: example.mask))
    return names


def found(folder, **settings):
    data = DataConfig(train_data_dir=folder, **settings)
    return add_masks(find_examples(folder, data), data)


def test_a_second_look_reads_nothing_and_finds_the_same(image_folder, index, reads):
    first = check_images(found(image_folder), skip_bad=False, index=index)
    assert sorted(reads) == ["0.png", "1.png", "2.png", "3.png"]
    reads.clear()
    assert check_images(found(image_folder), skip_bad=False, index=index) == first
    assert reads == []
    assert check_images(found(image_folder), skip_bad=False) == first, "as without an index"


def test_colours_are_told_again(tmp_path, index):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png", icc_profile=profile)
    example = Example(tmp_path / "a.png", "a")
    first = sift_images([example], index)
    assert first[0][0].colours
    assert sift_images([example], index) == first


@pytest.mark.parametrize("change", ["content", "size", "moved"])
def test_a_changed_file_is_read_again(image_folder, index, reads, change):
    (before, *_), _ = check_images(found(image_folder), skip_bad=False, index=index)
    reads.clear()
    path = image_folder / "0.png"
    if change == "moved":  # another file of the same name, and as old as the first
        Image.new("RGB", (4, 4), "lime").save(image_folder.parent / "other.png")
        status = path.stat()
        os.replace(image_folder.parent / "other.png", path)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        Image.new("RGB", (8, 8) if change == "content" else (9, 9), "lime").save(path)
    (after, *_), _ = check_images(found(image_folder), skip_bad=False, index=index)
    assert reads == ["0.png"]
    assert after.digest != before.digest and after.size == Image.open(path).size


def test_a_file_that_is_damaged_later_is_named(image_folder, index):
    check_images(found(image_folder), skip_bad=False, index=index)
    path = image_folder / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(FeraError, match=r"1 of 4 pictures cannot be used: .*1\.png is damaged"):
        check_images(found(image_folder), skip_bad=False, index=index)


def test_bad_pictures_are_named_each_time(image_folder, index):
    (image_folder / "3.png").write_bytes(b"no picture")
    first = sift_images(found(image_folder), index)
    assert len(first[1]) == 1 and sift_images(found(image_folder), index) == first


def test_a_picture_that_is_gone(image_folder, index):
    examples = found(image_folder)
    check_images(examples, skip_bad=False, index=index)
    (image_folder / "2.png").unlink()
    _, bad = sift_images(examples, index)
    assert bad == [f"{image_folder / '2.png'} does not exist"]


def test_what_was_just_written_is_not_trusted(image_folder, tmp_path, reads):
    """Times of files are coarse: who writes twice within a tick leaves one time."""
    index = PictureIndex(tmp_path / "pictures.sqlite", settled=3600)
    for _ in range(2):
        check_images(found(image_folder), skip_bad=False, index=index)
    assert len(reads) == 8


# Masks


@pytest.fixture
def masks(tmp_path):
    folder = tmp_path / "masks"
    folder.mkdir()
    for number in range(4):
        Image.new("L", (20, 16), 255).save(folder / f"{number}.png")
    return folder


def test_masks_are_read_once(image_folder, masks, index, reads):
    first = check_images(found(image_folder, mask_path=masks), skip_bad=False, index=index)
    assert len(reads) == 8 and all(example.mask_digest for example in first[0])
    reads.clear()
    assert check_images(found(image_folder, mask_path=masks), skip_bad=False, index=index) == first
    assert reads == []


def test_a_known_mask_of_another_picture_is_held_against_this_one(image_folder, masks, index):
    """A mask that fits one picture says nothing of another."""
    examples = check_images(found(image_folder, mask_path=masks), skip_bad=False, index=index)[0]
    Image.new("RGB", (8, 32)).save(image_folder / "wide.png")
    _, bad = sift_images([Example(image_folder / "wide.png", "w", mask=examples[0].mask)], index)
    assert len(bad) == 1 and "of another shape" in bad[0]
    _, bad = sift_images([Example(image_folder / "wide.png", "w", mask=examples[0].mask)], index)
    assert len(bad) == 1, "nor is that remembered as fitting"


def test_a_picture_that_is_its_own_mask(tmp_path, index, reads):
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "a.png")
    example = Example(tmp_path / "a.png", "a", mask=tmp_path / "a.png")
    first = sift_images([example], index)
    assert first[0][0].mask_digest == first[0][0].digest
    reads.clear()
    assert sift_images([example], index) == first and reads == []
    plain = sift_images([replace(example, mask=None)], index)
    assert plain[0][0].mask_digest == "" and reads == []


def test_a_mask_used_as_a_picture_is_read_as_one(image_folder, masks, index, reads):
    check_images(found(image_folder, mask_path=masks), skip_bad=False, index=index)
    reads.clear()
    (example,), _ = sift_images([Example(masks / "0.png", "m")], index)
    assert reads == ["0.png"] and example.size == (20, 16)


# Faults


@pytest.mark.parametrize("content", [b"", b"no database at all, but a file of some length " * 50])
def test_a_file_that_is_no_index_is_replaced(image_folder, index, reads, content):
    index._path.parent.mkdir()
    index._path.write_bytes(content)
    first = check_images(found(image_folder), skip_bad=False, index=index)
    assert check_images(found(image_folder), skip_bad=False, index=index) == first
    assert len(reads) == 4


@settings(max_examples=25, deadline=None)
@given(at=st.floats(0, 1), byte=st.integers(0, 255), length=st.integers(1, 4096))
def test_damage_anywhere_costs_time_alone(tmp_path_factory, at, byte, length):
    folder = tmp_path_factory.mktemp("damaged")
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    examples = [Example(folder / f"{number}.png", str(number)) for number in range(3)]
    index = PictureIndex(folder / "pictures.sqlite", settled=0)
    first = sift_images(examples, index)
    content = bytearray(index._path.read_bytes())
    start = int(at * (len(content) - 1))
    content[start : start + length] = bytes([byte]) * len(content[start : start + length])
    index._path.write_bytes(content)
    assert [e.image for e in sift_images(examples, index)[0]] == [e.image for e in first[0]]


def test_a_folder_in_the_way(image_folder, index):
    index._path.mkdir(parents=True)
    assert len(check_images(found(image_folder), skip_bad=False, index=index)[0]) == 4


def test_a_place_that_cannot_be_written(image_folder, tmp_path):
    (tmp_path / "file").write_text("in the way")
    index = PictureIndex(tmp_path / "file" / "pictures.sqlite", settled=0)
    assert len(check_images(found(image_folder), skip_bad=False, index=index)[0]) == 4


def test_another_process_that_writes_for_long(image_folder, index, reads, monkeypatch):
    monkeypatch.setattr("fera.support.sqlite._PATIENCE", 0.05)
    check_images(found(image_folder), skip_bad=False, index=index)
    reads.clear()
    with sqlite3.connect(index._path) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert len(check_images(found(image_folder), skip_bad=False, index=index)[0]) == 4
    assert len(reads) == 4


def test_another_reader_reads_again(image_folder, index, reads, monkeypatch):
    check_images(found(image_folder), skip_bad=False, index=index)
    monkeypatch.setattr("fera.data.index._READER", "another Pillow")
    check_images(found(image_folder), skip_bad=False, index=index)
    assert len(reads) == 8


def test_several_at_once(image_folder, index):
    examples, results = found(image_folder), []
    threads = [threading.Thread(target=lambda: results.append(sift_images(examples, index))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 and all(result == results[0] for result in results)


def test_many_files(tmp_path):
    """More than one statement may have parameters."""
    index = PictureIndex(tmp_path / "pictures.sqlite", settled=0)
    (tmp_path / "a.png").write_bytes(b"a")
    stamp = stamp_of(tmp_path / "a.png")
    files = [tmp_path / "a.png"] + [tmp_path / f"{n}.png" for n in range(40_000)]
    index.note({file: Known(stamp, str(n)) for n, file in enumerate(files)}, {}, [])
    assert index.known(files) == {files[0]: Known(stamp, "0")}


# Where it lies


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("FERA_CACHE", str(tmp_path / "own"))
    assert user_index()._path == tmp_path / "own" / "pictures.sqlite"
    monkeypatch.delenv("FERA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert user_index()._path == tmp_path / "cache" / "fera" / "pictures.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_index()._path == tmp_path / ".cache" / "fera" / "pictures.sqlite"
