"""`fera data cache`: the cache of a run, filled beforehand."""

import json
import os
import subprocess
import sys

import pytest
from cache_cases import entries
from training_cases import run_config

from fera.cli.main import main
from fera.data.cache import fingerprints
from fera.pipelines.waiting import Base
from fera.training import to_toml


@pytest.fixture
def run_file(tiny_sd_dir, image_folder, tmp_path):
    """The file of a configuration, with pictures held out and a prompt to draw."""
    config = run_config(
        tiny_sd_dir,
        image_folder,
        tmp_path / "run",
        data={"random_flip": True, "validation_fraction": 0.25, "cache_dir": tmp_path / "cache"},
        train={"steps": 1},
        validation={"prompts": ["a red rocket"], "num_inference_steps": 1, "loss_samples": 2},
    )
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config))
    return path


@pytest.fixture
def loaded(monkeypatch):
    """Names of the parts of a base that were asked for; files need not have been left alone to be known."""
    names = []
    real = Base.bring

    def noted(self, wanted=None, **options):
        names.extend(name for name in self.waiting if wanted is None or name in {*wanted})
        return real(self, wanted, **options)

    monkeypatch.setattr(Base, "bring", noted)
    monkeypatch.setattr(fingerprints.Fingerprints.__init__, "__defaults__", (0.0,))
    return names


def command(capsys, *arguments):
    code = main(["data", "cache", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, " ".join(told.err.split())


def test_training_finds_all_of_it(run_file, tmp_path, capsys, loaded):
    code, out, _ = command(capsys, run_file)
    assert code == 0 and not (tmp_path / "run").exists()
    assert f"{tmp_path / 'cache'}: 13 of 13 entries for 4 pictures" in out
    assert "text_encoder" in loaded and "vae" in loaded and "unet" not in loaded
    loaded.clear()
    assert command(capsys, run_file)[0] == 0 and loaded == [], "the second time there is nothing to do"
    assert main(["train", str(run_file)]) == 0
    assert "text_encoder" not in loaded
    assert len(list((tmp_path / "cache").iterdir())) == 3, "latents, texts and the prompt: nothing came with training"


def test_parts(run_file, tmp_path, capsys):
    found = [json.loads(command(capsys, run_file, "--part", f"{part}/3", "--json")[1]) for part in (3, 1, 2)]
    assert [one["part"] for one in found] == [3, 1, 2]
    assert found[0]["missing"] > found[1]["missing"] > found[2]["missing"] == 0
    assert {one["entries"] for one in found} == {13}
    assert len(entries(tmp_path / "cache")) == 13
    _, out, _ = command(capsys, run_file, "--part", "1/3", "--data.cache_dir", tmp_path / "other")
    assert "entries are for other parts than 1/3" in out


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b"])
def test_a_part_that_is_none(run_file, capsys, part):
    code, _, told = command(capsys, run_file, f"--part={part}")
    assert code == 2 and "--part" in told and part in told


def test_bad_data_is_told_as_training_tells_it(run_file, image_folder, capsys):
    (image_folder / "0.png").write_bytes(b"no picture")
    code, _, told = command(capsys, run_file)
    assert code == 2 and "0.png" in told and "cannot be used" in told


@pytest.mark.slow
def test_processes_of_a_launch_encode_together(run_file, tmp_path):
    """As many entries as one process makes, in shards of both; the run after it is that of one process."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    told = subprocess.run(
        [*launch, "-m", "fera.cli", "data", "cache", str(run_file)], env=environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr[-4000:]
    assert told.stdout.count("13 of 13 entries") == 1
    assert len(list((tmp_path / "cache").glob("latents-*"))) == 2
    alone = tmp_path / "alone"
    assert main(["data", "cache", str(run_file), "--data.cache_dir", str(alone)]) == 0
    assert entries(alone).keys() == entries(tmp_path / "cache").keys()


@pytest.mark.slow
def test_a_launched_run_encodes_on_all_processes(run_file, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    told = subprocess.run(
        [*launch, "-m", "fera.cli", "train", str(run_file)], env=environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr[-4000:]
    assert len(list((tmp_path / "cache").glob("latents-*"))) == 2
    assert len(entries(tmp_path / "cache")) == 13
