"""Fingerprints of models that are remembered by their files."""

import os

from fera.data.cache.fingerprints import Fingerprints, user_fingerprints


def files(folder, content=b"weights"):
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(content)
    return [folder / "config.json", folder / "model.safetensors"]


def test_what_is_noted_is_known(tmp_path):
    index, held = Fingerprints(tmp_path / "models.sqlite", settled=0), files(tmp_path / "model")
    assert index.known(held, ["Model", "bf16"]) is None
    index.note(held, ["Model", "bf16"], "abc")
    assert index.known(held, ["Model", "bf16"]) == "abc"
    assert Fingerprints(tmp_path / "models.sqlite").known(held, ["Model", "bf16"]) == "abc"
    assert index.known(held, ["Model", "fp32"]) is None
    assert index.known(held[:1], ["Model", "bf16"]) is None


def test_a_changed_file_is_not_known(tmp_path):
    index, held = Fingerprints(tmp_path / "models.sqlite", settled=0), files(tmp_path / "model")
    index.note(held, None, "abc")
    held[1].write_bytes(b"heavier")
    assert index.known(held, None) is None
    # Of the same size, and with the time of modification of before: the status change tells.
    index.note(held, None, "def")
    status = held[1].stat()
    held[1].write_bytes(b"hEavier")
    os.utime(held[1], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert index.known(held, None) is None


def test_a_file_of_this_moment_is_not_noted(tmp_path):
    index, held = Fingerprints(tmp_path / "models.sqlite"), files(tmp_path / "model")
    index.note(held, None, "abc")
    assert index.known(held, None) is None


def test_no_files_are_no_model(tmp_path):
    index = Fingerprints(tmp_path / "models.sqlite", settled=0)
    index.note([], None, "abc")
    index.note([tmp_path / "gone"], None, "abc")
    assert index.known([], None) is None and index.known([tmp_path / "gone"], None) is None


def test_a_damaged_index_is_replaced(tmp_path):
    index, held = Fingerprints(tmp_path / "models.sqlite", settled=0), files(tmp_path / "model")
    (tmp_path / "models.sqlite").write_bytes(b"no database at all" * 100)
    assert index.known(held, None) is None
    index.note(held, None, "abc")
    assert index.known(held, None) == "abc"


def test_it_lies_beside_the_index_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("FERA_CACHE", str(tmp_path / "own"))
    index, held = user_fingerprints(), files(tmp_path / "model")
    index._settled = 0
    index.note(held, None, "abc")
    assert (tmp_path / "own" / "models.sqlite").is_file()
