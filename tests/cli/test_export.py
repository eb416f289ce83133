"""`fera export`: its options, what it prints, and what it refuses."""

import json

import pytest
from adapter_cases import PROMPTS, make_pipeline, write_adapter
from export_cases import GATE, write_trace
from peft import LoHaConfig
from safetensors import safe_open

import fera
from fera import FeraConfig
from fera.cli.main import main


@pytest.fixture
def export(tmp_path, capfd):
    """Runs `fera export` of an adapter to `out`; returns exit code, standard output and error."""
    adapter = write_adapter("sd", tmp_path / "ink")

    def run(*arguments):
        capfd.readouterr()
        code = main(["export", str(adapter), *map(str, arguments), "--output", str(tmp_path / "out")])
        captured = capfd.readouterr()
        return code, captured.out, " ".join(captured.err.split())

    return run


def about(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["fera_export"])


def test_given_weights(export, tmp_path):
    code, out, err = export("--gate", "0.2,0.3,0.5", "--format", "kohya")
    assert code == 0, err
    assert out.strip() == str(tmp_path / "out" / "lora.safetensors")
    assert "gate: 0.200, 0.300, 0.500" in err and "was not measured" in err
    assert about(tmp_path / "out" / "lora.safetensors")["gate"] == GATE


def test_the_mean_of_a_trace_measured(export, tmp_path, tiny_sd_dir):
    trace = write_trace(tmp_path / "gates.csv", [[1, 0, 0], [0, 0.5, 0.5]])
    code, _, err = export("--trace", trace, "--base", tiny_sd_dir, "--prompts", *PROMPTS)
    assert code == 0, err
    assert "gate: 0.500, 0.250, 0.250" in err and "of what the adapter changes" in err
    written = about(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert written["approximation"]["prompts"] == PROMPTS
    assert export("--trace", trace, "--gate", "mean", "--overwrite")[0] == 0


def test_a_schedule(export, tmp_path):
    trace = write_trace(tmp_path / "gates.csv", [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1]])
    code, out, err = export("--trace", trace, "--schedule", "3")
    assert code == 0, err
    assert [line.rpartition("/")[2] for line in out.splitlines()] == [
        *(f"pytorch_lora_weights-{number}.safetensors" for number in (1, 2, 3)),
        "schedule.json",
    ]
    assert err.count("gate:") == 3


def test_a_tool_and_a_precision(export, tmp_path):
    code, _, _ = export("--gate", "uniform", "--for", "comfyui", "--dtype", "bf16")
    assert code == 0
    with safe_open(tmp_path / "out" / "lora.safetensors", "pt") as file:
        assert all(key.startswith("lora_unet_") for key in file.keys())
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which gate"),
        (["--gate", "mean"], "needs --trace"),
        (["--gate", "some"], "--gate some is no gate"),
        (["--gate", "0.5,0.5"], "has 3 weights"),
        (["--gate", "uniform", "--trace", "x.csv"], "leaves --trace unused"),
        (["--trace", "x.csv"], "x.csv cannot be read"),
        (["--schedule", "2", "--gate", "uniform"], "--schedule needs --trace"),
        (["--gate", "uniform", "--base", "emoji"], "needs both --base and --prompts"),
        (["--gate", "uniform", "--format", "kohya", "--for", "comfyui"], "not allowed with argument"),
        (["--gate", "uniform", "--for", "webui"], "invalid choice: 'webui'"),
        (["--gate", "uniform", "--format", "webui"], "invalid choice: 'webui'"),
    ],
)
def test_one_clear_error(export, tmp_path, arguments, message):
    code, out, err = export(*arguments)
    assert code == 2 and not out
    assert err.startswith("error: ") and message in err
    assert not (tmp_path / "out").exists()


def test_the_best_gate(export, tmp_path, tiny_sd_dir):
    code, _, err = export("--gate", "best", "--base", tiny_sd_dir, "--prompts", PROMPTS[0])
    assert code == 0, err
    assert "uniform: " in err and "mean: " in err and "best: " in err
    assert about(tmp_path / "out" / "pytorch_lora_weights.safetensors")["approximation"]["prompts"] == [PROMPTS[0]]
    code, _, err = export("--gate", "best", "--overwrite")
    assert code == 2 and "--gate best is chosen by drawing" in err


def test_experts_that_are_no_lora(tmp_path, capfd, tiny_sd_dir):
    pipe = make_pipeline("sd")
    pipe.unet.add_adapter(FeraConfig(expert=LoHaConfig(r=2, init_weights=False), target_modules=["to_q"]), "default")
    fera.save_adapter(pipe, tmp_path / "loha")
    options = ["export", str(tmp_path / "loha"), "--gate", "uniform", "--output", str(tmp_path / "out")]
    assert main(options) == 2 and "to write one that is nearly the same, give --base" in capfd.readouterr().err
    assert main([*options, "--base", str(tiny_sd_dir), "--energy", "0.9"]) == 0
    assert "what was cut from the change of the weights: " in " ".join(capfd.readouterr().err.split())
    assert 0 <= about(tmp_path / "out" / "pytorch_lora_weights.safetensors")["cut"] <= 0.32
