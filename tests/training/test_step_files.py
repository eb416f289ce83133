"""How many files of ours a training step runs through: who reads it has to hold them in mind."""

import sys
from pathlib import Path

import pytest
from training_cases import trainers

import fera

SOURCE = Path(fera.__file__).parent


def files_of(work):
    """Files of fera in which a function runs, or goes on, during some work."""
    seen = set()

    def note(frame, event, argument):
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return sorted(str(Path(name).relative_to(SOURCE)) for name in seen if name.startswith(str(SOURCE)))


@pytest.mark.parametrize("consistency_weight", [0.0, 0.1])
def test_a_step_runs_through_few_files(tiny_sd_dir, tmp_path, consistency_weight):
    with trainers(tiny_sd_dir, tmp_path) as make:
        trainer = make(tmp_path / "run", consistency_weight=consistency_weight, logging_steps=100)
        trainer.advance()
        files = files_of(trainer.advance)
    assert len(files) <= 33, "\n".join(files)
