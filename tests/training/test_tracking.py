"""Trackers: what TensorBoard reads back is what log.jsonl says."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.tracking import GeneralTracker
from listeners import train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_cases import mixed_folder, power_cut, run_config

from fera.cli.main import main
from fera.errors import FeraError
from fera.training.telling import tracking
from fera.training.telling.metrics import Metrics
from fera.training.telling.tracking import Trackers, chosen_trackers
from fera.training.trainer import Trainer

SETTINGS: dict = {
    "data": {"validation_fraction": 0.25},
    "train": {"steps": 5, "logging_steps": 2, "consistency_weight": 0.1, "checkpointing_steps": 3}
    | {"report_to": "tensorboard"},
    "validation": {"prompts": ["a red rocket", "**a** <b>house</b>"], "steps": 2, "loss_steps": 2}
    | {"num_inference_steps": 2, "loss_samples": 4},
}


def events_of(config):
    """What TensorBoard shows of a run."""
    everything = {"images": 0, "histograms": 0, "scalars": 0, "tensors": 0}
    return EventAccumulator(str(config.output_dir / "logs" / config.output_dir.name), everything).Reload()


def logged_scalars(config):
    """Tag to steps and values, from log.jsonl."""
    scalars = {}
    for line in (config.output_dir / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for name, entry in (("gates", "expert"), ("bands", "band")):
            for index, value in enumerate(record.pop(name, [])):
                scalars.setdefault(f"{name}/{entry}_{index + 1}", []).append((step, value))
        for name in ("gates_by_noise", "bands_by_noise"):  # a table a line, which trackers are not sent
            record.pop(name, None)
        for name, value in record.items():
            scalars.setdefault(name, []).append((step, value))
    return scalars


def shown_scalars(events):
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def without_speed(scalars):
    return {tag: values for tag, values in scalars.items() if tag != "samples_per_second"}


@pytest.fixture(scope="module")
def straight(tiny_sd_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    config = run_config(tiny_sd_dir, mixed_folder(folder / "pictures"), folder / "straight", **SETTINGS)
    train(config)
    return config


def test_scalars_are_those_of_the_log(straight):
    shown = shown_scalars(events_of(straight))
    logged = logged_scalars(straight)
    assert {"loss", "lr", "router_lr", "consistency", "gate_entropy", "samples_per_second", "held_out_loss"} < set(
        logged
    )
    assert set(shown) == set(logged) > {f"bands/band_{k}" for k in (1, 2, 3)}
    for tag, values in logged.items():
        assert [step for step, _ in shown[tag]] == [step for step, _ in values], tag
        assert [value for _, value in shown[tag]] == pytest.approx([value for _, value in values], rel=1e-6), tag


def test_bands_and_gates_of_each_sample(straight):
    events = events_of(straight)
    shown = shown_scalars(events)
    for step in range(3):
        assert sum(shown[f"bands/band_{k}"][step][1] for k in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    expected = {f"gates_histogram/expert_{e}" for e in (1, 2, 3)} | {f"bands_histogram/band_{k}" for k in (1, 2, 3)}
    assert set(events.Tags()["histograms"]) == expected
    for tag, scalar in (("gates_histogram/expert_2", "gates/expert_2"), ("bands_histogram/band_3", "bands/band_3")):
        histograms = [(one.step, one.histogram_value) for one in events.Histograms(tag)]
        # Two steps of two samples to a line of the log, but for the last.
        assert [(step, held.num) for step, held in histograms] == [(2, 4), (4, 4), (5, 2)]
        for (_, held), (_, mean) in zip(histograms, shown[scalar], strict=True):
            assert held.sum / held.num == pytest.approx(mean, rel=1e-5)


def test_pictures_with_their_prompts(straight):
    from io import BytesIO

    from PIL import Image

    from fera.generation.grids import prompt_grid

    events = events_of(straight)
    tags = ["validation/000-a-red-rocket", "validation/001-a-b-house-b"]
    assert events.Tags()["images"] == tags
    assert [one.step for one in events.Images(tags[0])] == [0, 2, 4, 5]
    last = [Image.open(BytesIO(events.Images(tag)[-1].encoded_image_string)) for tag in tags]
    grid = Image.open(straight.output_dir / "samples" / "step-000005.png").convert("RGB")
    assert prompt_grid({"": last}, straight.validation.prompts).tobytes() == grid.tobytes()
    text = events.Tensors("validation/prompts/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines() == ["    000 a red rocket", "    001 **a** <b>house</b>"]


def test_resumed_run_goes_on_in_its_curves(straight):
    data = straight.data.train_data_dir
    config = run_config(straight.base, data, straight.output_dir.parent / "stopped", **SETTINGS)
    with power_cut(4):
        train(config)
    assert [step for step, _ in shown_scalars(events_of(config))["loss"]] == [2, 4]
    train(config, resume=True)
    once, twice = events_of(straight), events_of(config)
    assert without_speed(shown_scalars(twice)) == without_speed(shown_scalars(once))
    for tag in once.Tags()["images"]:
        pictures = [[(one.step, one.encoded_image_string) for one in events.Images(tag)] for events in (once, twice)]
        assert pictures[0] == pictures[1]
    assert without_speed(shown_scalars(twice)).keys() == without_speed(logged_scalars(config)).keys()


def test_settings_go_along_but_no_paths(straight):
    texts = [path.read_text() for path in (straight.output_dir / "logs").rglob("hparams.yml")]
    assert len(texts) == 1 and "train.steps: 5" in texts[0]
    assert str(straight.output_dir.parent) not in texts[0] and straight.base not in texts[0]


def test_a_service_gets_no_step_twice():
    class Service(GeneralTracker):
        name, requires_logging_directory, tracker = "service", False, None

        def __init__(self):
            super().__init__()
            self.held = []

        def log(self, values, step=None, **kwargs):
            self.held.append((step, values))

    service = Service()
    trackers = Trackers(SimpleNamespace(trackers=[service]), logged=4)
    for step in (4, 5):
        trackers.log({"step": step, "loss": 0.5, "gates": [0.25, 0.75], "note": "text"}, {})
    assert service.held == [(5, {"loss": 0.5, "gates/expert_1": 0.25, "gates/expert_2": 0.75})]


def test_choosing(monkeypatch):
    installed = {"tensorboard": True, "wandb": False, "trackio": True}
    for name, there in installed.items():
        monkeypatch.setitem(tracking._IS_INSTALLED, name, lambda there=there: there)
    assert chosen_trackers(None) == ["tensorboard"]
    assert chosen_trackers(["none"]) == [] == chosen_trackers([])
    assert chosen_trackers(["all"]) == ["tensorboard", "trackio"]
    assert chosen_trackers(["trackio", "tensorboard", "trackio"]) == ["trackio", "tensorboard"]
    with pytest.raises(FeraError, match="asks for wandb.*pip install wandb"):
        chosen_trackers(["tensorboard", "wandb"])


def toml_of(tmp_path, tiny_sd_dir, image_folder, train_keys):
    path = tmp_path / "run.toml"
    path.write_text(
        f'base = "{tiny_sd_dir}"\noutput_dir = "{tmp_path / "out"}"\n[data]\ntrain_data_dir = "{image_folder}"\n'
        f"[train]\nsteps = 1\nbatch_size = 2\n{train_keys}\n"
    )
    return str(path)


def test_mistakes_end_before_training(tmp_path, tiny_sd_dir, image_folder, capsys, monkeypatch):
    monkeypatch.setitem(tracking._IS_INSTALLED, "wandb", lambda: False)
    for keys, flags, message in (
        ('report_to = "wandb"', [], "pip install wandb"),
        ('report_to = "tensorbord"', [], "expected list of tensorboard, wandb, trackio, all, none"),
        ('report_to = ["none", "tensorboard"]', [], "keep one"),
        ("", ["--train.report_to", "tensorboard", "wandb"], "pip install wandb"),
    ):
        assert main(["train", toml_of(tmp_path, tiny_sd_dir, image_folder, keys), *flags]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_none_leaves_no_folder_and_another_folder_is_taken(tmp_path, tiny_sd_dir, image_folder):
    toml = toml_of(tmp_path, tiny_sd_dir, image_folder, 'report_to = "none"')
    assert main(["train", toml]) == 0
    assert not (tmp_path / "out" / "logs").exists()
    flags = ["--train.report_to", "tensorboard", "--train.logging_dir", str(tmp_path / "all"), "--overwrite"]
    assert main(["train", toml, *flags]) == 0
    assert list((tmp_path / "all" / "out").glob("events.*")) and not (tmp_path / "out" / "logs").exists()


def test_a_folder_that_cannot_be_written(tmp_path, tiny_sd_dir, image_folder, capsys):
    (tmp_path / "file").write_text("")
    toml = toml_of(tmp_path, tiny_sd_dir, image_folder, f'logging_dir = "{tmp_path / "file"}"')
    assert main(["train", toml]) == 2
    assert "cannot report to tensorboard" in " ".join(capsys.readouterr().err.split())


def test_counting_reads_nothing_back():
    """On the meta device there is nothing to read: whatever waits for a value fails."""
    metrics = Metrics()
    for _ in range(300):
        one = torch.rand(4, 3, device="meta")
        metrics.add(one[:, 0], one.sum(), one, one)
    assert metrics.samples == 1200 and len(metrics.losses) < 256
    with pytest.raises((RuntimeError, NotImplementedError)):
        metrics.averages()


def test_a_step_that_is_not_logged_moves_nothing_to_the_cpu(straight, tmp_path, monkeypatch):
    moved, cpu, advance = [], torch.Tensor.cpu, Trainer.advance
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor, *args: moved.append(tensor) or cpu(tensor, *args))
    counts = []

    def counting(self):
        moved.clear()
        advance(self)
        counts.append(len(moved))

    monkeypatch.setattr(Trainer, "advance", counting)
    settings = {"logging_steps": 3, "consistency_weight": 0.1}
    config = run_config(straight.base, straight.data.train_data_dir, tmp_path / "run", train=settings)
    train(config)
    assert counts[0] == counts[1] == counts[3] == counts[4] == 0 and counts[2] and counts[5]


def test_gates_and_shares_are_told_by_noise():
    metrics = Metrics()
    gates = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    metrics.add(torch.ones(3), None, gates, torch.eye(3), torch.tensor([0.0, 0.1, 1.0]))
    told = metrics.averages()
    assert told["gates_by_noise"] == [[0.5, 0.5], *[None] * 6, [0.5, 0.5]]
    assert told["bands_by_noise"][0] == [0.5, 0.5, 0.0] and told["bands_by_noise"][-1] == [0.0, 0.0, 1.0]
    assert told["bands"] == [pytest.approx(1 / 3, abs=1e-5)] * 3
    # Goes on from a checkpoint that did not keep levels: said without them.
    metrics.levels.clear()
    metrics.add(torch.ones(1), None, gates[:1], torch.eye(3)[:1], torch.zeros(1))
    assert "gates_by_noise" not in metrics.averages()


def test_counting_is_as_before():
    metrics = Metrics()
    metrics.add(torch.tensor([1.0, 2.0]), torch.tensor(0.5), torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.ones(2, 1))
    metrics.add(torch.tensor([6.0]), torch.tensor(0.2), torch.tensor([[0.0, 1.0]]), torch.ones(1, 1))
    assert metrics.averages() == {
        "loss": 3.0,
        "consistency": 0.4,  # weighted by samples
        "gate_entropy": pytest.approx(1 / 3),
        "gates": [0.5, 0.5],
        "bands": [1.0],
    }
    assert metrics.distributions()["gates"].tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
