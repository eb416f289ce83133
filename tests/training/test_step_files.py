"""How much of the code a reader of a training step meets."""

import sys
from pathlib import Path

from listeners import train
from training_cases import run_config

import fera
from fera.training.trainer import Trainer

ROOT = Path(fera.__file__).parent
# Reading the batch, the base's family, the router, the routed layers, the loss, the update, what is told of it.
MOST = 32


def test_a_step_runs_through_few_files(tiny_sd_dir, image_folder, tmp_path, monkeypatch):
    advance, entered = Trainer.advance, set()

    def watched(trainer):
        if trainer.step != 1:  # the first also sets up what later ones use
            return advance(trainer)

        def note(frame, event, argument):
            path = Path(frame.f_code.co_filename)
            if event == "call" and path.is_relative_to(ROOT):
                entered.add(path.relative_to(ROOT).as_posix())

        sys.setprofile(note)
        try:
            return advance(trainer)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(Trainer, "advance", watched)
    train(run_config(tiny_sd_dir, image_folder, tmp_path / "run", train={"steps": 3, "logging_steps": 3}))
    assert {"training/trainer.py", "tuner/gate.py", "method/router.py"} <= entered
    assert len(entered) <= MOST, sorted(entered)
