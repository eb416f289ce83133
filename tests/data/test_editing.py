"""Captions that are read and written back, in each layout."""

import csv
import json
import os

import pytest
from PIL import Image

from fera import FeraError
from fera.data import editing
from fera.data.editing import read_folder, write_captions


def pictures(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    return folder


def captions(folder):
    return {entry.name: entry.caption for entry in read_folder(folder).entries}


def test_files_beside_pictures(tmp_path):
    folder = pictures(tmp_path, "a.png", "b.jpg", "c.png")
    (folder / "a.txt").write_text("a cat\n")
    (folder / "b.caption").write_text("a dog")
    write_captions(
        read_folder(folder), {"a.png": ("a cat", "a red cat"), "b.jpg": ("a dog", ""), "c.png": ("", "a fox")}
    )
    assert captions(folder) == {"a.png": "a red cat", "b.jpg": "", "c.png": "a fox"}
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".png") == [
        *("a.txt", "b.caption", "b.jpg", "c.txt"),
    ]


def test_folders_with_repeats(tmp_path):
    folder = pictures(tmp_path, "3_sks dog/a.png", "1_else/b.png")
    held = read_folder(folder)
    assert held.layout == "repeats"
    write_captions(held, {"3_sks dog/a.png": ("sks dog", "sks dog, sitting")})
    assert (folder / "3_sks dog" / "a.txt").read_text() == "sks dog, sitting\n"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_rows_keep_what_else_they_have(tmp_path, kind):
    folder = pictures(tmp_path, "a.png", "in/b.png", "c.png")
    rows = [
        {"file_name": "a.png", "text": 'one, "two"', "artist": "Ünal"},
        {"file_name": "in/b.png", "text": "b", "artist": ""},
        {"file_name": "a.png", "text": "again", "artist": "x"},
    ]
    with (folder / f"metadata.{kind}").open("w", newline="", encoding="utf-8") as file:
        if kind == "jsonl":
            file.write("\n".join(json.dumps(row) for row in rows))
        else:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    held = read_folder(folder)
    assert [entry.name for entry in held.entries] == ["a.png", "in/b.png", "a.png#2", "c.png"]
    write_captions(held, {"a.png#2": ("again", "anew"), "c.png": ("", "c")})
    with (folder / f"metadata.{kind}").open(newline="", encoding="utf-8") as file:
        found = [json.loads(line) for line in file] if kind == "jsonl" else list(csv.DictReader(file))
    assert [(row["file_name"], row["text"], row.get("artist") or "") for row in found] == [
        ("a.png", 'one, "two"', "Ünal"),
        ("in/b.png", "b", ""),
        ("a.png", "anew", "x"),
        ("c.png", "c", ""),
    ]


def test_what_was_changed_elsewhere_is_told_and_nothing_is_written(tmp_path):
    folder = pictures(tmp_path, "a.png", "b.png")
    (folder / "a.txt").write_text("a cat")
    (folder / "b.txt").write_text("changed meanwhile")
    with pytest.raises(FeraError, match="b.png was changed elsewhere meanwhile, to 'changed meanwhile'"):
        write_captions(read_folder(folder), {"a.png": ("a cat", "x"), "b.png": ("b", "y")})
    with pytest.raises(FeraError, match="is not in"):
        write_captions(read_folder(folder), {"z.png": ("", "x")})
    assert captions(folder) == {"a.png": "a cat", "b.png": "changed meanwhile"}


def test_pictures_that_share_a_caption_file_have_one_caption(tmp_path):
    folder = pictures(tmp_path, "a.png", "a.jpg")
    with pytest.raises(FeraError, match="have one caption file, a.txt"):
        write_captions(read_folder(folder), {"a.png": ("", "x"), "a.jpg": ("", "y")})
    write_captions(read_folder(folder), {"a.png": ("", "x"), "a.jpg": ("", "x")})
    assert captions(folder) == {"a.png": "x", "a.jpg": "x"}


def test_a_full_disk_leaves_each_caption_whole(tmp_path, monkeypatch):
    folder = pictures(tmp_path, "a.png", "b.png")
    for name in "ab":
        (folder / f"{name}.txt").write_text("as it was")
    real, done = editing.replace_text, []

    def full(path, text):
        if path.name == "b.txt":
            raise OSError(28, "No space left on device")
        real(path, text)

    monkeypatch.setattr(editing, "replace_text", full)
    with pytest.raises(FeraError, match="No space left on device. Make room, save again"):
        changes = {name: ("as it was", "new") for name in ("a.png", "b.png")}
        write_captions(read_folder(folder), changes, done.append)
    assert done == ["a.png"] and captions(folder) == {"a.png": "new", "b.png": "as it was"}


def test_a_caption_is_never_written_through_a_link(tmp_path):
    folder = pictures(tmp_path / "data", "a.png")
    (tmp_path / "secret.txt").write_text("secret")
    held = read_folder(folder)
    os.symlink(tmp_path / "secret.txt", folder / "a.txt")  # after the look
    write_captions(held, {"a.png": ("", "mine")})
    assert (tmp_path / "secret.txt").read_text() == "secret" and (folder / "a.txt").read_text() == "mine\n"
    with pytest.raises(FeraError, match="outside of the data folder"):
        (folder / "a.txt").unlink()
        os.symlink(tmp_path / "secret.txt", folder / "a.txt")
        read_folder(folder)
