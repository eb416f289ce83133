"""What `export_lora` measures, and what it writes."""

import json
import shutil

import pytest
import torch
from adapter_cases import add_adapter, denoiser_of, make_pipeline
from export_cases import GATE, TRACE, routed, save
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tuner_cases import find_gate, unet_inputs

import fera
from fera import FeraError
from fera.export.gap import measure_gap, record_walk
from fera.export.writing import SCHEDULE, export_lora


@pytest.fixture
def adapter(tmp_path):
    return routed("sd", tmp_path / "adapter")[1]


def about(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["fera_export"])


# The distance


def test_a_router_that_does_not_move_is_matched_exactly():
    pipe = add_adapter(make_pipeline("sd"))
    torch.nn.init.zeros_(find_gate(pipe.unet).router["default"].output.weight)
    torch.nn.init.zeros_(find_gate(pipe.unet).router["default"].output.bias)
    walk = record_walk(pipe, ["a green tree"], steps=2)
    gap = measure_gap(pipe, walk, lambda step: torch.full((3,), 1 / 3))
    assert gap.prediction < 1e-6 and gap.change < 1e-5


def test_no_adapter_at_all_is_as_far_off_as_the_base():
    pipe = add_adapter(make_pipeline("sd"))
    walk = record_walk(pipe, ["a green tree", "the sun and moon"], steps=3)
    gap = measure_gap(pipe, walk, lambda step: torch.zeros(3))
    assert gap.change == pytest.approx(1, abs=1e-5)
    assert len(gap.timesteps) == len(gap.change_by_call) == 3 == len(set(gap.timesteps))
    assert list(gap.timesteps) == sorted(gap.timesteps, reverse=True)


def test_the_distance_is_that_of_the_written_file(adapter, tmp_path):
    """The file in a fresh pipeline, on the inputs that the routed one saw."""
    exported = export_lora(adapter, tmp_path, GATE, pipe=make_pipeline("sd"), prompts=["a green tree"])
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, adapter)
    walk = record_walk(pipe, ["a green tree"])
    static = make_pipeline("sd")
    static.load_lora_weights(tmp_path)
    error = size = change = 0.0
    with torch.no_grad():
        for (args, kwargs), answer, base in zip(walk.calls, walk.routed, walk.base, strict=True):
            found = static.unet(*args, **kwargs | {"return_dict": False})[0]
            error += float((found - answer).double().square().sum())
            size += float(answer.double().square().sum())
            change += float((answer - base).double().square().sum())
    assert exported.gap.prediction == pytest.approx((error / size) ** 0.5, rel=1e-3)
    assert exported.gap.change == pytest.approx((error / change) ** 0.5, rel=1e-3)
    written = about(exported.files[0])["approximation"]
    assert written["prediction"] == exported.gap.prediction and written["prompts"] == ["a green tree"]


def test_the_pipeline_is_left_as_it_was(adapter, tmp_path):
    pipe = make_pipeline("sd")
    before = pipe.unet(**unet_inputs(2)).sample
    export_lora(adapter, tmp_path, "uniform", pipe=pipe, prompts=["a green tree"])
    assert torch.equal(pipe.unet(**unet_inputs(2)).sample, before)
    assert not hasattr(denoiser_of(pipe), "peft_config")


# Files


def test_a_file_or_a_folder(adapter, tmp_path):
    assert export_lora(adapter, tmp_path / "a.safetensors", GATE).files == [tmp_path / "a.safetensors"]
    exported = export_lora(adapter, tmp_path / "new" / "folder", GATE)
    assert exported.files == [tmp_path / "new" / "folder" / "pytorch_lora_weights.safetensors"]
    assert exported.gates == [pytest.approx(GATE)] and exported.gap is None
    assert about(exported.files[0])["approximation"] == "not measured"
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o444 == 0o444


def test_a_schedule(adapter, tmp_path):
    pipe = make_pipeline("sd")
    exported = export_lora(
        adapter, tmp_path / "out", TRACE, format="kohya", schedule=2, pipe=pipe, prompts=["a green tree"]
    )
    names = ["lora-1.safetensors", "lora-2.safetensors", SCHEDULE]
    assert [path.name for path in exported.files] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    schedule = json.loads(exported.files[-1].read_text())
    assert schedule["format"] == "kohya"
    assert schedule["loras"] == [
        {
            **{"file": "lora-1.safetensors", "gate": [0.5, 0.5, 0.0], "first_step": 1, "last_step": 2},
            **{"start": 0.0, "end": 0.5, "timesteps": [900.0, 600.0], "noise_levels": [0.9, 0.6]},
        },
        {
            **{"file": "lora-2.safetensors", "gate": [0.0, 0.0, 1.0], "first_step": 3, "last_step": 4},
            **{"start": 0.5, "end": 1.0, "timesteps": [300.0, 100.0], "noise_levels": [0.3, 0.1]},
        },
    ]
    assert about(exported.files[0])["gate"] == [0.5, 0.5, 0.0]
    assert schedule["approximation"]["change"] == exported.gap.change


def test_a_schedule_of_the_routed_gates_is_nearer_than_one_lora(tmp_path):
    pipe = add_adapter(make_pipeline("sd"))
    folder = save(pipe, tmp_path / "adapter")
    walk = record_walk(pipe, ["a green tree"], steps=8)
    gaps = [
        export_lora(
            folder, tmp_path / str(n), walk.trace, schedule=n, pipe=make_pipeline("sd"), prompts=["a green tree"]
        ).gap.change
        for n in (1, 8)
    ]
    assert gaps[1] < 0.1 * gaps[0]


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("out", {"gate": "uniform", "schedule": 2}, "a schedule needs a trace"),
        ("out.safetensors", {"gate": TRACE, "schedule": 2}, "give a folder as output"),
        ("out", {"gate": TRACE, "schedule": 9}, "the trace has 4"),
        ("out", {"gate": "uniform", "format": "webui"}, "unknown format 'webui'"),
        ("out", {"gate": "uniform", "tool": "webui"}, "unknown tool 'webui'"),
        ("out", {"gate": "uniform", "prompts": ["a rocket"]}, "both a base and prompts"),
    ],
)
def test_errors_write_nothing(adapter, tmp_path, output, options, message):
    with pytest.raises(FeraError, match=message):
        export_lora(adapter, tmp_path / output, **options)
    assert not (tmp_path / output).exists()


def test_files_are_replaced_only_when_asked(adapter, tmp_path):
    (path,) = export_lora(adapter, tmp_path, GATE).files
    before = path.read_bytes()
    with pytest.raises(FeraError, match="exists already"):
        export_lora(adapter, tmp_path, "uniform")
    assert path.read_bytes() == before
    export_lora(adapter, tmp_path, "uniform", overwrite=True)
    assert about(path)["gate"] == [0.333333] * 3


def test_a_failure_leaves_the_old_files(adapter, tmp_path, monkeypatch):
    export_lora(adapter, tmp_path / "out", TRACE, schedule=2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    saved = []

    def fail_second(tensors, path, metadata):
        saved.append(path)
        path.write_bytes(b"half")
        if len(saved) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("fera.export.writing.save_tensors", fail_second)
    with pytest.raises(FeraError, match="cannot write the export .* No space left"):
        export_lora(adapter, tmp_path / "out", TRACE, schedule=2, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_precision_of_the_file(adapter, tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        export_lora(adapter, tmp_path / "low.safetensors", "uniform", dtype=dtype, overwrite=True)
        assert {tensor.dtype for tensor in load_file(tmp_path / "low.safetensors").values()} == {dtype}
    export_lora(adapter, tmp_path / "full.safetensors", "uniform")
    low, full = (load_file(tmp_path / f"{name}.safetensors") for name in ("low", "full"))
    for key, tensor in full.items():
        torch.testing.assert_close(low[key].float(), tensor, rtol=1e-2, atol=1e-2)


def test_numbers_beyond_the_precision_are_refused(adapter, tmp_path):
    tensors = load_file(adapter / "adapter_model.safetensors")
    with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
        metadata = file.metadata()
    key = next(key for key in tensors if "experts_B" in key)
    tensors[key] = tensors[key] * 1e6 + 1e6
    large = tmp_path / "large"
    shutil.copytree(adapter, large)
    save_file(tensors, large / "adapter_model.safetensors", metadata)
    with pytest.raises(FeraError, match="holds numbers beyond float16; choose another"):
        export_lora(large, tmp_path / "out.safetensors", "uniform", dtype=torch.float16)
    assert not (tmp_path / "out.safetensors").exists()
