"""`fera compare` as typed, on tiny models: from a study to a report."""

import json
import signal

import pytest
from PIL import Image

import fera.comparison.running as running
from fera.cli.main import main
from fera.comparison.claims import holder
from fera.comparison.results import read_results
from fera.comparison.study import read_study
from fera.training import trainer

COLORS = ("red", "green", "blue", "yellow")


@pytest.fixture
def study(tiny_sd_dir, tmp_path):
    """A study of two methods, two styles and one seed on folders of four pictures, of which two captions are drawn."""
    styles = []
    for style in ("plain", "dark"):
        for split in ("train", "validation", "test"):
            folder = tmp_path / style / split
            folder.mkdir(parents=True)
            for number, color in enumerate(COLORS):
                image = Image.new("RGB", (16, 16), color)
                image = image.point(lambda value: value // 2) if style == "dark" else image
                image.putpixel((number, len(split)), (255, 255, 255))
                image.save(folder / f"{number}.png")
                (folder / f"{number}.txt").write_text(f"a {color} house")
        styles.append(str(tmp_path / style))
    path = tmp_path / "study.toml"
    path.write_text(
        f'name = "tiny"\nbase = "{tiny_sd_dir}"\nstyles = {json.dumps(styles)}\nseeds = [0]\nvalidation_samples = 4\n'
        "[train]\nsteps = 2\nbatch_size = 2\nlearning_rate = 1e-2\nconsistency_weight = 0.0\n"
        "[evaluation]\nloss_samples = 8\nmax_prompts = 2\nnum_inference_steps = 1\n"
        '[methods.lora]\nadapter.plain = { peft_type = "LORA", r = 6, lora_alpha = 6 }\n'
        "[methods.routed]\nadapter.r = 2\n"
    )
    return path


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


def compare(study, output, *flags):
    return main(["compare", str(study), "--output", str(output), *flags])


def results_of(study, output):
    return read_results(output, read_study(study))


def test_a_study_leaves_results_and_a_report_and_is_not_done_twice(study, output, capsys, monkeypatch):
    assert compare(study, output) == 0
    results = results_of(study, output)
    assert len(results) == 4 and all(len(one.samples.losses) == 8 for one in results)
    lora, routed = (next(one for one in results if one.method == name) for name in ("lora", "routed"))
    assert lora.parameters == routed.parameters and lora.router_parameters == 0 < routed.router_parameters
    assert lora.gates is None and len(routed.gates) == 4
    for quarter in routed.gates:
        assert sum(quarter["use"]) == pytest.approx(1, abs=1e-5) and 0 <= quarter["entropy"] <= 1
    assert lora.samples.images == routed.samples.images and lora.samples.losses != routed.samples.losses
    assert sum(lora.samples.bands[0]) == pytest.approx(lora.samples.losses[0], rel=1e-4)
    assert lora.seconds_per_training_step > 0 and lora.adapter_bytes > 0 and lora.versions["torch"]
    report = (output / "report" / "comparison.md").read_text()
    assert "one seed: no claim" in report and str(output) not in report
    for name in ("differences.png", "by-noise-and-band.png"):
        with Image.open(output / "report" / name) as picture:
            assert picture.width > 400
    for style in ("plain", "dark"):
        with Image.open(output / "report" / f"pictures-{style}.png") as sheet:  # both methods and the real ones
            assert sheet.height > 3 * 128
        assert f"pictures-{style}.png" in report
    captured = capsys.readouterr()
    assert "[4/4] routed · dark · seed 0" in captured.err and "One seed only" in captured.out
    assert not list(output.rglob("claim.json")) and not list(output.rglob("checkpoints"))

    monkeypatch.setattr("fera.comparison.working.execute", lambda *_: pytest.fail("a finished run was done again"))
    assert compare(study, output, "--collect", str(output / "all.json")) == 0
    assert compare(study, output.with_name("again"), "--from", str(output / "all.json")) == 0
    again = output.with_name("again")
    assert (again / "report" / "comparison.md").is_file()
    assert compare(study, again, "--from", str(output / "all.json"), "--against", "routed") == 0
    assert "against routed" in (again / "report" / "against-routed" / "comparison.md").read_text()
    on = output.with_name("on")
    assert compare(study, on, "--start-from", str(output / "all.json")) == 0
    assert [one.run for one in results_of(study, on)] == [one.run for one in results]


@pytest.mark.slow
def test_a_moved_or_copied_folder_goes_on_and_changed_settings_are_named(study, output, capsys):
    assert compare(study, output, "--max-runs", "1") == 0
    output.rename(output.with_name("moved"))
    output = output.with_name("moved")
    assert compare(study, output, "--max-runs", "1", "--only", "lora") == 0
    assert [one.style for one in results_of(study, output)] == ["plain", "dark"]
    study.write_text(study.read_text().replace("steps = 2", "steps = 1"))
    assert compare(study, output) == 2
    assert "train.steps is 1, was 2" in capsys.readouterr().err.replace("\n", " ")
    assert compare(study, output, "--only", "lora", "--overwrite") == 0
    assert {one.settings["train.steps"] for one in results_of(study, output)} == {1}


@pytest.mark.slow
def test_a_learning_rate_is_tried_on_validation_names_and_used(study, output):
    study.write_text(study.read_text() + "learning_rates = [1e-9, 5e-2]\n")
    assert compare(study, output, "--only", "routed") == 0
    trials = sorted((output / "learning-rates" / "routed" / "plain" / "seed-0").iterdir())
    assert [trial.name for trial in trials] == ["0.05", "1e-09"]
    losses = {trial.name: json.loads((trial / "result.json").read_text())["validation_loss"] for trial in trials}
    best = float(min(losses, key=losses.get))
    (plain,) = [one for one in results_of(study, output) if one.style == "plain"]
    assert plain.settings["train.learning_rate"] == best
    assert not (trials[0] / "training" / "adapter").exists() and not list(output.glob("learning-rates/**/evaluation"))


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_next_call_resumes(study, output, capsys, monkeypatch):
    assert compare(study, output, "--max-runs", "1") == 0
    train = running.train
    advance = trainer.Trainer.advance

    def stop_after_one(self):
        advance(self)
        if self.step == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer.Trainer, "advance", stop_after_one)
    assert compare(study, output) == 130
    assert len(results_of(study, output)) == 1
    assert holder(output / "routed" / "plain" / "seed-0") is None
    assert (output / "routed" / "plain" / "seed-0" / "training" / "checkpoints" / "step-000001").is_dir()
    monkeypatch.setattr(trainer.Trainer, "advance", advance)
    resumed = []
    monkeypatch.setattr(running, "train", lambda config, **options: resumed.append(options) or train(config, **options))
    assert compare(study, output, "--max-runs", "1") == 0
    assert [options["resume"] for options in resumed] == [True] and len(results_of(study, output)) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--only", "rooted"), "did you mean 'routed'?"),
        (("--against", "rooted"), "did you mean 'routed'?"),
        (("--max-runs", "0"), "--max-runs must be at least 1"),
        (("--report-only",), "no finished runs to report"),
        (("--from", "absent.json"), "cannot read absent.json"),
        (("--start-from", "absent.json"), "cannot read absent.json"),
        (("--start-from", "a.json", "--from", "a.json"), "give one of them"),
    ],
)
def test_mistakes_are_one_message(study, output, capsys, flags, message):
    assert compare(study, output, *flags) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
