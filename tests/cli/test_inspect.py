"""`fera inspect`: what an adapter's files say, without any model."""

import json
import subprocess
import sys

import pytest
from adapter_cases import write_adapter
from safetensors.torch import load_file, save_file

from fera.adapters.inspection import describe
from fera.cli.main import main


@pytest.fixture(scope="module", params=["sd", "sd3"])
def adapter(request, tmp_path_factory):
    return write_adapter(request.param, tmp_path_factory.mktemp("runs") / "ink" / "adapter", num_experts=4, kappa=0.02)


def test_json_says_it_all(adapter, capsys):
    assert main(["inspect", str(adapter), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    tensors = load_file(adapter / "adapter_model.safetensors")
    experts = {key: tensor for key, tensor in tensors.items() if "experts_" in key}
    assert described["parameters"] == {
        "experts": sum(tensor.numel() for tensor in experts.values()),
        "per_expert": sum(tensor.numel() for tensor in experts.values()) // 4,
        "router": sum(tensor.numel() for key, tensor in tensors.items() if key not in experts),
        "total": sum(tensor.numel() for tensor in tensors.values()),
    }
    assert described["settings"]["num_experts"] == 4
    assert described["settings"]["kappa"] == 0.02
    assert described["settings"]["scale"] == 2.0
    assert described["targets"]["target_modules"] == ["to_k", "to_out.0", "to_q", "to_v"]
    assert described["targets"]["layers"] == len(experts) // 2
    assert described["base"]["class"] in ("UNet2DConditionModel", "SD3Transformer2DModel")
    assert described["base"]["weight_tensors"] > described["base"]["sampled_tensors"] > 0
    assert described["file"]["dtype"] == ["F32"]
    assert described["file"]["bytes"] == (adapter / "adapter_model.safetensors").stat().st_size
    assert set(described["versions"]) == {"fera", "peft", "torch"}


def test_a_file_a_folder_and_a_run_say_the_same(adapter):
    assert describe(adapter) == describe(adapter.parent) == describe(adapter / "adapter_model.safetensors")


def test_for_people(adapter, capsys):
    assert main(["inspect", str(adapter)]) == 0
    out = capsys.readouterr().out
    for word in ("settings", "num experts", "to_out.0", "per expert", "router", "versions", "peft"):
        assert word in out


def test_half_precision_is_named(adapter, tmp_path):
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors = load_file(adapter / "adapter_model.safetensors")
    halves = {key: tensor.half() if "experts_" in key else tensor for key, tensor in tensors.items()}
    save_file(halves, tmp_path / "half.safetensors", metadata=metadata)
    assert describe(tmp_path / "half.safetensors")["file"]["dtype"] == ["F16", "F32"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone", None, "no adapter at"),
        ("x.safetensors", b"", "is not a readable safetensors file"),
        ("x.bin", b"\x80\x04", "is a pickle"),
    ],
)
def test_one_clear_error(tmp_path, capfd, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["inspect", str(tmp_path / name)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and message in " ".join(err.split())


def test_no_model_code_is_loaded(tmp_path):
    """Diffusers' pipelines and transformers' models take seconds to import."""
    adapter = write_adapter("sd", tmp_path)
    code = (
        "import sys; from fera.adapters.inspection import describe; describe(sys.argv[1]);"
        "print([m for m in sys.modules if m.startswith(('diffusers.pipelines', 'diffusers.models.unets'))])"
    )
    done = subprocess.run([sys.executable, "-c", code, adapter], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
