"""`fera train` and `fera config` as typed."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import fera
from fera.cli.main import main
from fera.config.keys import keys
from fera.config.reference import to_markdown
from fera.training import load_config


@pytest.fixture
def toml(tiny_sd_dir, image_folder, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        f'base = "{tiny_sd_dir}"\noutput_dir = "{tmp_path / "out"}"\n[data]\ntrain_data_dir = "{image_folder}"\n'
        "[train]\nsteps = 500\nbatch_size = 2\n"
    )
    return path


def test_trains_with_flags_over_the_file(toml, tmp_path, capsys):
    flags = ["--train.steps", "2", "--data.skip_bad", "--data.random_flip", "false", "--adapter.kappa=0.1"]
    assert main(["train", str(toml), *flags]) == 0
    config = load_config(tmp_path / "out" / "config.toml")
    assert (config.train.steps, config.data.skip_bad, config.data.random_flip) == (2, True, False)
    assert config.adapter.kappa == 0.1 and config.train.batch_size == 2
    assert "held out" in capsys.readouterr().err


def test_lists_and_none(toml, tmp_path):
    flags = ["--train.steps", "1", "--adapter.target_modules", "to_q", "to_v", "--adapter.lora_alpha", "none"]
    assert main(["train", str(toml), *flags]) == 0
    config = load_config(tmp_path / "out" / "config.toml")
    assert config.adapter.target_modules == ["to_q", "to_v"] and config.adapter.lora_alpha is None


def test_the_resolved_configuration_trains_again(toml, tmp_path):
    assert main(["train", str(toml), "--train.steps", "1"]) == 0
    assert main(["train", str(tmp_path / "out" / "config.toml"), "--overwrite"]) == 0


def test_help_shows_every_key(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for key in keys():
        assert f"--{key.name}" in text


def test_config_prints_the_reference(capsys):
    assert main(["config", "--markdown"]) == 0
    assert capsys.readouterr().out == to_markdown()
    assert main(["config"]) == 0
    assert "train.steps" in capsys.readouterr().out


def test_version_names_what_a_report_of_a_bug_needs(capsys):
    assert main(["--version"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"fera {fera.__version__} (torch {version('torch')}, diffusers ")
    assert text.endswith(")\n") and text.count("\n") == 1


def test_help_and_configuration_need_no_diffusers():
    code = "import sys; from fera.cli import main; main(['--help']); assert 'fera.cli.train' not in sys.modules; "
    code += "import fera.config.reading; assert 'diffusers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
