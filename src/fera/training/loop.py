"""The training loop.

Nothing random has a state of its own: which examples a step sees, their noise and timesteps follow from the seed and
the step's number. To resume is to restore weights, optimizer and that number.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from fera.checkpoint import open_adapter
from fera.errors import FeraError
from fera.training.calibrating import with_kappa
from fera.training.card import write_card
from fera.training.config import TrainConfig
from fera.training.hub import claim_repo, push_adapter
from fera.training.reporting import Reporter
from fera.training.settings import to_toml
from fera.training.setup import prepare
from fera.training.state import RunFolder
from fera.training.summary import Summary
from fera.training.tracking import Trackers, chosen_trackers, open_trackers
from fera.training.trainer import Trainer


def train(config: TrainConfig, *, resume: bool = False, overwrite: bool = False, quiet: bool = False) -> Summary:
    """Train an adapter and leave a run folder.

    Args:
        config: the whole configuration; `load_config` reads one from a file.
        resume: go on from the last checkpoint in `config.output_dir`.
        overwrite: replace the run in `config.output_dir`.
        quiet: show progress alone, without messages.

    Returns:
        What `summary.json` holds.

    Raises:
        FeraError: something the user gave cannot work, or the loss is not finite any more.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was saved.
    """
    began = time.monotonic()
    run = RunFolder(config.output_dir)
    checkpoint = run.check(resume=resume, overwrite=overwrite)
    if checkpoint is not None and config.adapter.kappa == "auto":
        config = with_kappa(config, open_adapter(checkpoint / "adapter").config.chosen_kappa)
    resumed = RunFolder.step_of(checkpoint) if checkpoint is not None else None
    accelerator = _accelerator(config, open_trackers(config, chosen_trackers(config.train.report_to), resumed))
    repo = None
    if config.push_to_hub and accelerator.is_main_process:
        repo = claim_repo(config.hub_model_id or config.output_dir.resolve().name, private=config.hub_private)
    with Reporter(run.log, is_main=accelerator.is_main_process, quiet=quiet) as reporter:
        # One process fills the cache, the others find it full.
        with accelerator.main_process_first():
            setup = prepare(config, accelerator.device, reporter)
        if setup.bands is not None:
            config = with_kappa(config, setup.bands.kappa)
        trainer = Trainer(config, run, accelerator, setup, reporter)
        logged = run.last_logged() if checkpoint is not None else -1
        if checkpoint is not None:
            trainer.restore(checkpoint)
        if accelerator.is_main_process:
            run.begin(config, to_toml(config), resume=resume)
            reporter.track(Trackers.start(accelerator, config, resumed=resume, logged=logged))
            if setup.calibration is not None:
                chosen = setup.calibration.chosen
                reporter.write({"step": 0, "kappa": chosen.kappa, "bits": round(chosen.bits, 4)})
        accelerator.wait_for_everyone()

        with _noticing_interrupt() as interrupted:
            if checkpoint is None:
                trainer.validate(pictures=True, loss=True)
            while trainer.step < config.train.steps:
                trainer.advance()
                at_end = trainer.step == config.train.steps
                trainer.validate(
                    pictures=at_end or _is_due(trainer.step, config.validation.steps),
                    loss=at_end or _is_due(trainer.step, config.validation.loss_steps),
                )
                if at_end or _is_due(trainer.step, config.train.checkpointing_steps):
                    trainer.save_checkpoint()
                if trainer.agree(interrupted()) and not at_end:
                    trainer.save_checkpoint()
                    reporter.say(f"interrupted after step {trainer.step}; go on with:")
                    reporter.say(f"  fera train {run.config} --resume")
                    raise KeyboardInterrupt
        summary = trainer.finish(time.monotonic() - began)
        if accelerator.is_main_process:
            write_card(config, summary, run.adapter, run.samples)
            if repo is not None:
                reporter.say(f"uploaded: {_push(run, repo)}")
        return summary


def _accelerator(config: TrainConfig, trackers: list[GeneralTracker]) -> Accelerator:
    settings = config.train
    try:
        return Accelerator(
            mixed_precision=settings.mixed_precision,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            log_with=trackers or None,
            project_dir=config.output_dir,
        )
    except ValueError as error:  # fp16 without a device that has it, for one
        raise FeraError(f"train.mixed_precision = {settings.mixed_precision}: {error}") from error


def _push(run: RunFolder, repo: str) -> str:
    try:
        return push_adapter(run.adapter, repo)[0]
    except FeraError as error:
        raise FeraError(f"{error}. The run is finished; push it by: fera push {run.path} {repo}") from error


@contextmanager
def _noticing_interrupt() -> Iterator[Callable[[], bool]]:
    """Let the step in progress end after Ctrl-C; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # Python delivers signals to the main thread alone
        return
    noticed = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def notice(*signal_and_frame: object) -> None:
        noticed.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, notice)
    try:
        yield noticed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def _is_due(step: int, cadence: int) -> bool:
    return cadence > 0 and step % cadence == 0
