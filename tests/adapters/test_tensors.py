"""The bytes of a safetensors file depend on its content alone."""

import json

import torch
from adapter_cases import add_adapter, make_pipeline
from safetensors import safe_open
from safetensors.torch import load_file

import fera
from fera.adapters.tensors import save_tensors
from fera.export.writing import export_lora

METADATA = {name: f"{name} – é\n\u2028" for name in "format about zebra 0 fera".split()}


def test_what_is_written_is_read(tmp_path):
    """Also where metadata take more than one byte a letter, and tensors have several dtypes or no entries."""
    tensors = {
        "b": torch.randn(3, 5),
        "a.é": torch.randn(7).to(torch.bfloat16),
        "c": torch.arange(3, dtype=torch.uint8),
        "empty": torch.zeros(0, 2),
        "scalar": torch.tensor(2.0),
    }
    save_tensors(tensors, tmp_path / "file.safetensors", METADATA)
    read = load_file(tmp_path / "file.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in read)
    with safe_open(tmp_path / "file.safetensors", framework="pt") as file:
        assert file.metadata() == METADATA
    data = (tmp_path / "file.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and list(json.loads(data[8 : 8 + length])["__metadata__"]) == sorted(METADATA)


def test_equal_content_gives_equal_bytes(tmp_path):
    tensors = {name: torch.full((2,), 0.5) for name in "xyz"}
    files = set()
    for metadata, held in ((METADATA, tensors), (dict(reversed(METADATA.items())), dict(reversed(tensors.items())))):
        for _ in range(4):
            save_tensors(held, tmp_path / "file.safetensors", metadata)
            files.add((tmp_path / "file.safetensors").read_bytes())
    assert len(files) == 1


def test_one_adapter_saved_again_is_one_file(tmp_path):
    pipe = add_adapter(make_pipeline("sd"))
    files, exported = set(), set()
    for _ in range(5):
        fera.save_adapter(pipe, tmp_path / "ink")
        files.add(tuple(path.read_bytes() for path in sorted((tmp_path / "ink").iterdir())))
        (written, *_) = export_lora(tmp_path / "ink", tmp_path / "out", "uniform", overwrite=True).files
        exported.add(written.read_bytes())
    assert len(files) == len(exported) == 1
