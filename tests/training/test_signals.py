"""SIGTERM, as whoever takes a machine away sends it. Ctrl-C is in test_training_loop."""

import os
import signal
import threading

import pytest
from listeners import train
from training_cases import assert_same_adapter, log_of, run_config

from fera.cli.main import main
from fera.training import TrainConfig
from fera.training.signals import stop_request
from fera.training.trainer import Trainer


@pytest.fixture
def configure(tiny_sd_dir, image_folder, tmp_path):
    def make(name: str) -> TrainConfig:
        return run_config(
            tiny_sd_dir,
            image_folder,
            tmp_path / name,
            data={"validation_fraction": 0.25},
            adapter={"target_modules": ["to_q"]},
            train={"steps": 4},
            validation={"loss_steps": 1, "loss_samples": 1},
        )

    return make


def terminated_in(method: str, at: int, monkeypatch) -> None:
    real = getattr(Trainer, method)

    def terminate(self, *arguments, **options):
        if self.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Trainer, method, terminate)


def test_terminated_run_goes_on_as_if_it_had_not_been(configure, monkeypatch, capsys):
    straight = configure("straight")
    train(straight)
    for method, at in (("advance", 1), ("validate", 2)):
        check_terminated(straight, configure(method), method, at, monkeypatch, capsys)


def check_terminated(straight: TrainConfig, stopped: TrainConfig, method: str, at: int, monkeypatch, capsys) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        terminated_in(method, at, patch)
        with pytest.raises(SystemExit) as left:
            train(stopped)
    assert left.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is handler
    last = at if method == "validate" else at + 1
    assert [path.name for path in (stopped.output_dir / "checkpoints").iterdir()] == [f"step-{last:06d}"]
    measured = log_of(stopped, "held_out_loss")
    assert len(measured) == (last + 1 if method == "validate" else last), "no measuring in the grace time"
    told = capsys.readouterr().err
    assert f"terminated after step {last}" in told
    assert f"fera train {stopped.output_dir / 'config.toml'} --resume" in told
    train(stopped, resume=True)
    assert_same_adapter(straight, stopped)
    for key in ("step", "loss", "held_out_loss"):
        assert log_of(straight, key) == log_of(stopped, key), key


def test_exit_code_is_0(configure, monkeypatch, tmp_path):
    from fera.training import to_toml

    (tmp_path / "run.toml").write_text(to_toml(configure("stopped")))
    terminated_in("advance", 0, monkeypatch)
    assert main(["train", str(tmp_path / "run.toml")]) == 0


def test_a_skipped_step_is_not_where_a_run_stops(configure, monkeypatch):
    """Its weights may be what is wrong; the next good step is at most max_skipped_steps away."""
    from fera.training.step.losses import Losses

    real = Trainer._losses

    def spoiled(self, *arguments):
        losses = real(self, *arguments)
        return Losses(losses.denoising * (float("nan") if self.step == 1 else 1.0), None)

    monkeypatch.setattr(Trainer, "_losses", spoiled)
    terminated_in("advance", 1, monkeypatch)
    config = configure("stopped")
    with pytest.raises(SystemExit):
        train(config)
    assert [path.name for path in (config.output_dir / "checkpoints").iterdir()] == ["step-000003"]
    assert len(log_of(config, "held_out_loss")) == 3, "that of the skipped step is not lost"


def test_a_second_signal_breaks_off():
    previous = signal.signal(signal.SIGTERM, lambda number, frame: (_ for _ in ()).throw(RuntimeError("now")))
    try:
        with pytest.raises(RuntimeError, match="now"), stop_request() as stop:
            assert not stop
            signal.raise_signal(signal.SIGTERM)
            assert stop and stop.words == "terminated"
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_signals_are_left_alone_outside_the_main_thread():
    seen = []
    handler = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        with stop_request() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, handler)]
