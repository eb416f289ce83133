"""One run of a study: train, evaluate, measure, write the result."""

import gc
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from fera.comparison.measuring import code, gates_by_quarter, hardware, peak_memory, restart_peak_memory, versions
from fera.comparison.plan import Run, fingerprint
from fera.comparison.results import Result, Samples, write_result
from fera.evaluation import Evaluation, EvaluationSettings, evaluate
from fera.method.routing import Routing
from fera.models.components import denoisers
from fera.models.noise import noise_process
from fera.pipelines.base import load_base
from fera.support.progress import Listener, ProgressOnly
from fera.training import TrainConfig, train
from fera.training.folder.resuming import CannotResume
from fera.training.folder.run_folder import RunFolder
from fera.training.summary import Summary
from fera.training.trained.kinds import adapter_of
from fera.tuner.model import gate_of


@dataclass(frozen=True)
class Task:
    """What one run needs to know.

    Args:
        run: which it is.
        folder: the folder of the run; gets `training/`, `evaluation/` and `result.json`.
        config: the config of its training.
        settings: what its result depends on.
        evaluation: settings of the evaluation.
        test: folder of the test pictures.
    """

    run: Run
    folder: Path
    config: TrainConfig
    settings: dict[str, Any]
    evaluation: EvaluationSettings
    test: Path


def execute(task: Task, listener: Listener) -> Result:
    """Train, evaluate unless a learning rate is on trial, and leave `result.json`.

    A training that was interrupted goes on from its last checkpoint.

    Args:
        task: the run.
        listener: hears what is worth a line, and how far the training is.

    Raises:
        FeraError: training or evaluation refuses.
        KeyboardInterrupt: Ctrl-C; the training has a checkpoint.
    """
    began = time.monotonic()
    _forget_accelerators()
    device = Accelerator().device
    _forget_accelerators()
    restart_peak_memory(device)
    summary = _train(task.config, listener)
    memory = peak_memory(device)
    trained = RunFolder(task.config.output_dir)
    router = 0
    evaluation, routings, timesteps = None, [], 1
    if not task.run.is_search:
        pipe = load_base(task.config.base)
        adapter = adapter_of(task.config.adapter)
        adapter.load(pipe, trained.adapter)
        denoiser = next(iter(denoisers(pipe).values()))
        pipe.to(device)
        router = router_parameters(denoiser)
        timesteps = noise_process(pipe.scheduler, task.config.train.prediction_type).num_train_timesteps
        with adapter.routings(denoiser) as routings:
            evaluation = evaluate(
                pipe,
                task.test,
                task.evaluation,
                output=task.folder / "evaluation",
                cache=task.config.data.cache_dir,
                judge="auto" if task.evaluation.images_per_prompt else None,
            )
    result = _result(task, summary, evaluation, router=router, routings=routings, timesteps=timesteps, memory=memory)
    result = Result(**{**vars(result), "seconds": round(time.monotonic() - began, 2)})
    if task.run.is_search:
        shutil.rmtree(trained.adapter)
    shutil.rmtree(trained.checkpoints)  # before the result: with it the run counts as done
    write_result(result, task.folder)
    gc.collect()
    return result


def router_parameters(denoiser: nn.Module) -> int:
    """Parameters of a denoiser's routers."""
    gate = gate_of(denoiser)
    return sum(parameter.numel() for parameter in gate.router.parameters()) if gate is not None else 0


def _train(config: TrainConfig, listener: Listener) -> Summary:
    # Of a study's many runs only progress is shown, not what each of them says.
    progress = ProgressOnly(listener)
    if RunFolder(config.output_dir).latest_checkpoint() is not None:
        try:
            return train(config, resume=True, listener=progress)
        except CannotResume as error:
            listener.say(f"  starting anew: {error}")
            _forget_accelerators()
    return train(config, overwrite=True, listener=progress)


def _result(
    task: Task,
    summary: Summary,
    evaluation: Evaluation | None,
    *,
    router: int,
    routings: list[Routing],
    timesteps: int,
    memory: int | None,
) -> Result:
    weights = RunFolder(task.config.output_dir).adapter.rglob("*.safetensors")
    metrics = evaluation.to_dict() if evaluation is not None else {}
    samples = metrics.pop("samples", None)
    metrics.pop("settings", None)  # they are in `settings`
    return Result(
        method=task.run.method,
        style=task.run.style,
        seed=task.run.seed,
        rate=task.run.rate,
        settings=task.settings,
        fingerprint=fingerprint(task.settings),
        code=code(),
        versions=versions(),
        hardware=hardware(torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")),
        parameters=summary.parameters - router,
        router_parameters=router,
        adapter_bytes=sum(path.stat().st_size for path in weights),
        seconds=0.0,
        seconds_per_training_step=round(summary.training_seconds / summary.steps, 4),
        seconds_per_generation_step=metrics.get("seconds_per_step"),
        peak_memory_bytes=memory,
        validation_loss=summary.held_out_loss_after,
        gates=gates_by_quarter(routings, timesteps),
        samples=_columns(samples) if samples is not None else None,
        metrics=metrics,
    )


def _columns(samples: list[dict[str, Any]]) -> Samples:
    return Samples(
        images=[sample["image"] for sample in samples],
        positions=[sample["position"] for sample in samples],
        losses=[sample["loss"] for sample in samples],
        bands=[list(sample["bands"]) for sample in samples],
    )


def _forget_accelerators() -> None:
    """Make the next run the first: accelerate remembers the precision of a process's first."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
