"""Adapters of strangers: what their settings and headers may not ask for."""

import json
import struct
import time

import pytest
import torch
from adapter_cases import make_pipeline, write_adapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fera
from fera import FeraError
from fera.adapters.file import open_adapter
from fera.cli.main import main
from fera.format import CONFIG, WEIGHTS
from fera.training import load_config


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter("sd", tmp_path_factory.mktemp("adapters") / "ink")


@pytest.fixture
def copied(adapter, tmp_path):
    folder = tmp_path / "ink"
    folder.mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).write_bytes((adapter / name).read_bytes())
    return folder


def edit(folder, **changes):
    (folder / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changes))


def rewrite(folder, change):
    with safe_open(folder / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata)


@pytest.mark.parametrize(
    "changes",
    [
        {"router_features": 10**9},
        {"num_bands": 10**6},
        {"num_experts": 10**9},
        {"r": 10**9},
        {"rank_pattern": {"to_q": "many"}},
        {"rank_pattern": ["to_q"]},
        {"alpha_pattern": {"to_q": None}},
        {"rank_pattern": {"(": 1}},
        {"target_modules": ["to_q", 3]},
        {"base_fingerprint": {"class": "UNet2DConditionModel"}},
        {"base_fingerprint": {"class": "U", "tensors": 1, "sample": {"a": ["x"]}}},
        {"base_fingerprint": "none"},
    ],
)
def test_settings_beyond_all_use_are_refused(copied, changes):
    edit(copied, **changes)
    with pytest.raises(FeraError):
        open_adapter(copied)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*)*", "(a|a)*", ".*.*.*.*.*x", "a{1,}b+c+d+e*", "x" * 600])
def test_patterns_that_never_end_are_refused(copied, pattern):
    for changes in ({"target_modules": pattern}, {"rank_pattern": {pattern: 1}}, {"exclude_modules": pattern}):
        before = (copied / CONFIG).read_bytes()
        edit(copied, **changes)
        began = time.process_time()
        with pytest.raises(FeraError, match="could take very long to match"):
            open_adapter(copied)
        assert time.process_time() - began < 2
        (copied / CONFIG).write_bytes(before)


def test_usual_patterns_are_taken(copied):
    for pattern in (r".*\.attn\d\.(to_q|to_k|to_v|to_out\.0)", r"^(down|up)_blocks.*attn.*to_[qkv]$", r".*(to_q)?"):
        edit(copied, target_modules=pattern)
        assert open_adapter(copied).config.target_modules == pattern


def test_a_tensor_without_content_claims_no_rank(copied):
    key = next(key for key in load_file(copied / WEIGHTS) if ".experts_A." in key)
    edit(copied, r=10**6)
    rewrite(copied, lambda tensors: tensors.update({key: torch.zeros(3 * 10**6, 0)}))
    with pytest.raises(FeraError, match="which holds nothing"):
        open_adapter(copied)


def test_layers_are_compared_before_anything_is_built(copied):
    def narrow(tensors):
        for key in [key for key in tensors if ".experts_A." in key]:
            tensors[key] = torch.zeros(tensors[key].shape[0], 1)

    rewrite(copied, narrow)
    pipe = make_pipeline("sd")
    before = sum(parameter.numel() for parameter in pipe.unet.parameters())
    with pytest.raises(FeraError, match="of this base has 32 inputs"):
        fera.load_adapter(pipe, copied)
    assert sum(parameter.numel() for parameter in pipe.unet.parameters()) == before


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000])
def test_deep_and_huge_json(copied, text):
    (copied / CONFIG).write_text(text)
    with pytest.raises(FeraError):
        open_adapter(copied)


def test_a_header_that_claims_more_than_the_file(copied):
    for size in (2**62, 10**8 + 1, 10**6):
        (copied / WEIGHTS).write_bytes(struct.pack("<Q", size) + b"{}")
        with pytest.raises(FeraError, match="is not a readable safetensors file"):
            open_adapter(copied)


def test_a_huge_config(copied):
    (copied / CONFIG).write_bytes(b" " * (2**22 + 1))
    with pytest.raises(FeraError, match="more than"):
        open_adapter(copied)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "9" * 10_000,
        "x" * 100_000 + " = 1",
        'output_dir = "\\u0000"',
        "# " + "x" * 2**20,
    ],
)
def test_hostile_configurations(tmp_path, text):
    (tmp_path / "c.toml").write_text(text + '\nbase = "b"\n[data]\ntrain_data_dir = "d"\n')
    with pytest.raises(FeraError) as caught:
        load_config(tmp_path / "c.toml")
    assert len(str(caught.value)) < 300_000


@pytest.mark.parametrize(
    "flag", ["--adapter.r", "--adapter.num_experts", "--adapter.router_features", "--train.batch_size"]
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(flag, tmp_path, capsys):
    flags = ["--base", "emoji", "--output_dir", str(tmp_path / "o"), "--data.train_data_dir", str(tmp_path)]
    assert main(["train", *flags, flag, "1000000000"]) == 2
    assert "expected integer" in capsys.readouterr().err


def test_code_of_strangers_is_never_run():
    from pathlib import Path

    for path in Path(fera.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8").replace('"trust_remote_code": False', "")
        assert "trust_remote_code" not in text and "weights_only=False" not in text, path
