"""The training loop.

Nothing random has a state of its own: which examples a step sees, their noise and timesteps follow from the seed and
the step's number. To resume is to restore weights, optimizer and that number.
"""

import time
from collections.abc import Sequence
from contextlib import nullcontext

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from fera.adapters.file import open_adapter
from fera.config import TrainConfig
from fera.config.reading import to_toml
from fera.errors import FeraError
from fera.support.progress import SILENT, Listener
from fera.training.failures import failures_explained
from fera.training.folder.checkpoints import read_state
from fera.training.folder.lock import run_lock
from fera.training.folder.resuming import check_allow, check_changes, with_buckets_of, with_layers_of
from fera.training.folder.run_folder import RunFolder
from fera.training.memory_advice import fitting_named
from fera.training.processes.fsdp import arrange, check_launch, find_processes, is_sharded
from fera.training.processes.sharing import share_of_launch
from fera.training.processes.zero_launch import launched_plainly
from fera.training.publishing.card import write_card
from fera.training.publishing.hub import claim_repo, push_adapter
from fera.training.signals import StopRequest, stop_request
from fera.training.start.kappa import with_kappa
from fera.training.start.prepare import prepare
from fera.training.step.compiling import check_compile, compiling
from fera.training.summary import Summary
from fera.training.telling.reporter import Reporter
from fera.training.telling.tracking import Trackers, chosen_trackers, open_trackers
from fera.training.trainer import Trainer


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    allow: Sequence[str] = (),
    overwrite: bool = False,
    listener: Listener = SILENT,
) -> Summary:
    """Train an adapter and leave a run folder.

    Args:
        config: the whole configuration; `load_config` reads one from a file.
        resume: go on from the last whole checkpoint in `config.output_dir`.
        allow: settings that may differ from that checkpoint's: dotted names, names of sections ("data" stands for the
            pictures and captions too), or "all".
        overwrite: replace the run in `config.output_dir`.
        listener: hears what happens and how far it is, on the main process; `fera.support.progress` has an example.

    Returns:
        What `summary.json` holds.

    Raises:
        FeraError: something the user gave cannot work, another process trains in this folder, losses are not finite
            any more, or disk or memory do not suffice.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was saved.
        SystemExit: SIGTERM, after a checkpoint was saved; its code is 0.
    """
    began = time.monotonic()
    check_allow(allow, resume=resume)
    check_launch(config)
    check_compile(config)
    run = RunFolder(config.output_dir)
    is_main = find_processes().is_main_process
    reporter = Reporter(run.log, is_main=is_main, listener=listener)
    lock = run_lock(run.path, reporter.say) if is_main else nullcontext()
    with reporter, failures_explained(config, run.kept), lock:
        checkpoint = run.check(resume=resume, overwrite=overwrite, say=reporter.say)
        if checkpoint is not None and config.adapter.kappa == "auto":
            config = with_kappa(config, open_adapter(checkpoint / "adapter").config.chosen_kappa)
        former_buckets = False
        if checkpoint is not None:
            config, former_buckets = with_buckets_of(checkpoint, config)
        changed = check_changes(checkpoint, config, allow) if checkpoint is not None else []
        former_stages = None
        if checkpoint is not None and config.data.stages and not any(c.name.startswith("data.stage") for c in changed):
            former_stages = read_state(checkpoint).get("stages")
        resumed = RunFolder.step_of(checkpoint) if checkpoint is not None else None
        accelerator = _accelerator(config, open_trackers(config, chosen_trackers(config.train.report_to), resumed))
        repo = None
        if config.push_to_hub and is_main:
            repo = claim_repo(config.hub_model_id or config.output_dir.resolve().name, private=config.hub_private)
        setup = prepare(
            with_layers_of(checkpoint, config) if checkpoint is not None else config,
            accelerator.device,
            reporter,
            on_cpu=is_sharded(accelerator),
            former_buckets=former_buckets,
            former_stages=former_stages,
            share=share_of_launch(find_processes()),
        )
        if setup.bands is not None:
            config = with_kappa(config, setup.bands.kappa)
        if setup.bucket_step is not None:  # what is settled is kept: a later default does not change the run
            data = config.data.model_copy(update={"bucket_reso_steps": setup.bucket_step})
            config = config.model_copy(update={"data": data})
        trainer = Trainer(config, run, accelerator, setup, reporter)
        logged = run.last_logged() if checkpoint is not None else -1
        if checkpoint is not None:
            trainer.restore(checkpoint, changed, allow)
        if is_main:
            run.begin(to_toml(config), resume=checkpoint is not None)
            if setup.course is not None and former_stages is None:
                setup.course.write(run.stages, run.stages_picture)
            reporter.track(Trackers.start(accelerator, config, resumed=checkpoint is not None, logged=logged))
            if setup.calibration is not None:
                chosen = setup.calibration.chosen
                reporter.write({"step": 0, "kappa": chosen.kappa, "bits": round(chosen.bits, 4)})
        accelerator.wait_for_everyone()
        fitting = fitting_named(setup.denoiser, config, accelerator.device)
        with stop_request() as stop, compiling(config), fitting:
            _run(trainer, config, run, reporter, stop)
        summary = trainer.finish(time.monotonic() - began)
        if is_main:
            write_card(config, summary, run.adapter, run.samples)
            if repo is not None:
                reporter.say(f"uploaded: {_push(run, repo)}")
        return summary


def _run(trainer: Trainer, config: TrainConfig, run: RunFolder, reporter: Reporter, stop: StopRequest) -> None:
    """All steps; left between two of them where the run is asked to stop."""
    steps, wants_checkpoint = config.train.steps, False

    def leaves() -> bool:
        return trainer.agree(bool(stop)) and trainer.progress.is_sound and trainer.step < steps

    if trainer.progress.validated < trainer.step:
        _validate(trainer, config)
    while trainer.step < steps:
        trainer.advance()
        leaving = leaves()
        if not leaving:  # drawing can take long; the resumed run makes up for it
            _validate(trainer, config)
        wants_checkpoint |= trainer.step == steps or _is_due(trainer.step, config.train.checkpointing_steps)
        if wants_checkpoint and (trainer.progress.is_sound or trainer.step == steps):
            trainer.save_checkpoint()
            wants_checkpoint = False
        if leaving or leaves():
            trainer.save_checkpoint()
            reporter.say(f"{stop.words} after step {trainer.step}; go on with:")
            reporter.say(f"  fera train {run.config} --resume")
            stop.leave()


def _validate(trainer: Trainer, config: TrainConfig) -> None:
    """Measure and draw what is due at this step."""
    at_an_end = trainer.step in (0, config.train.steps)
    trainer.validate(
        pictures=at_an_end or _is_due(trainer.step, config.validation.steps),
        loss=at_an_end or _is_due(trainer.step, config.validation.loss_steps),
    )


def _accelerator(config: TrainConfig, trackers: list[GeneralTracker]) -> Accelerator:
    settings = config.train
    try:
        with launched_plainly():
            accelerator = Accelerator(
                mixed_precision=settings.mixed_precision,
                gradient_accumulation_steps=settings.gradient_accumulation_steps,
                log_with=trackers or None,
                project_dir=config.output_dir,
            )
    except ValueError as error:  # a precision that the device does not have, for one
        raise FeraError(f"train.mixed_precision = {settings.mixed_precision}: {error}") from error
    arrange(accelerator)
    if settings.mixed_precision == "fp16" and accelerator.scaler is None:
        # On a CPU accelerate goes on without, and small gradients become 0.
        raise FeraError(
            f"train.mixed_precision = fp16 needs a GPU, and this is {accelerator.device.type}, where nothing scales "
            "its gradients: use bf16 or no"
        )
    return accelerator


def _push(run: RunFolder, repo: str) -> str:
    try:
        return push_adapter(run.adapter, repo)[0]
    except FeraError as error:
        raise FeraError(f"{error}. The run is finished; push it by: fera push {run.path} {repo}") from error


def _is_due(step: int, cadence: int) -> bool:
    return cadence > 0 and step % cadence == 0
