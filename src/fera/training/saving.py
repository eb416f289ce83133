"""A run's checkpoints and its finished adapter: what goes into them, and the way back."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fera.config import TrainConfig
from fera.errors import FeraError
from fera.support.files import replace_text
from fera.support.strict_json import to_json
from fera.training.folder.checkpoints import read_state
from fera.training.folder.resuming import (
    CannotResume,
    Change,
    adopt_hyperparameters,
    change_of_course,
    check_base_and_data,
    config_of,
)
from fera.training.folder.run_folder import RunFolder
from fera.training.processes.exchange import agree
from fera.training.processes.fsdp import gathered, local, state_for, whole_state
from fera.training.progress import Progress
from fera.training.start.prepare import Setup
from fera.training.step.averages import Average
from fera.training.step.optimizers import build_optimizer
from fera.training.step.order import order_of
from fera.training.summary import Summary
from fera.training.telling.reporter import Reporter
from fera.tuner.subspace import subspace_factors


@dataclass(frozen=True)
class Saver:
    """Saves what a run has learned, and restores it. All processes call its methods together.

    Args:
        config: the configuration of the run.
        run: its folder.
        accelerator: the accelerator of the run.
        setup: what `prepare` made.
        reporter: told what changed.
        base: fingerprint of the denoiser.
        optimizer: as accelerate prepared it.
        lr_scheduler: its schedule.
        average: what is kept of the weights.
        trained: all parameters of the optimizer, in its order.
    """

    config: TrainConfig
    run: RunFolder
    accelerator: Accelerator
    setup: Setup
    reporter: Reporter
    base: dict[str, Any]
    optimizer: Any
    lr_scheduler: LambdaLR
    average: Average
    trained: Sequence[nn.Parameter]

    def save(self, progress: Progress) -> None:
        """Write a checkpoint.

        Raises:
            FeraError: it cannot be written, or the weights are not finite.
        """
        self._check_weights(progress.step)
        optimizer = whole_state(self.optimizer.state_dict())
        with gathered(self.setup.denoiser):
            self._write_checkpoint(progress, optimizer)
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, progress: Progress, optimizer: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "data": self.setup.data_digest,
                "base": self.base,
                "optimizer": optimizer,
                "lr_scheduler": self.lr_scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "average": self.average.state_dict(),
                "coordinates": {name: one.coordinates.detach() for name, one in subspace_factors(self.setup.denoiser)},
                "stages": self.setup.course.names if self.setup.course is not None else None,
                **progress.state(),
            }
            keep = self.config.train.checkpoints_total_limit if progress.is_sound else None
            with self.average.applied():
                self.run.save_checkpoint(progress.step, self.config, state, self._save_adapter, keep=keep)

    def finish(self, summary: Summary, *, step: int) -> None:
        """Write the adapter and the summary.

        Args:
            summary: the summary of the run.
            step: optimizer steps taken.

        Raises:
            FeraError: they cannot be written, or the weights are not finite.
        """
        self._check_weights(step)
        with gathered(self.setup.denoiser):
            self._write_adapter(summary)
        self.accelerator.wait_for_everyone()

    def _write_adapter(self, summary: Summary) -> None:
        if self.accelerator.is_main_process:
            try:
                with self.average.applied():
                    self._save_adapter(self.run.adapter)
            except FeraError as error:  # a full disk, for one
                raise FeraError(f"{error}. {self.run.kept()}") from error
            replace_text(self.run.summary, to_json(asdict(summary), indent=2) + "\n")

    def _save_adapter(self, folder: Path) -> None:
        self.setup.adapter.save(self.setup.pipe, folder)

    def has_finite_weights(self) -> bool:
        """Whether all weights that train are finite, in all processes."""
        is_finite = all(bool(torch.isfinite(local(parameter)).all()) for parameter in self.trained)
        return not agree(self.accelerator, not is_finite)

    def _check_weights(self, step: int) -> None:
        if not self.has_finite_weights():
            raise FeraError(
                f"the weights are not finite after step {step}, so they are not saved. {self.run.kept()}. Lower "
                "train.learning_rate (with `allow` train.learning_rate)"
            )

    def restore(
        self, checkpoint: Path, changed: Sequence[Change], allow: Sequence[str]
    ) -> tuple[Progress, bool, str | None]:
        """Go back to a checkpoint.

        Args:
            checkpoint: its folder.
            changed: settings that differ from it.
            allow: what may differ; "data" for the pictures and captions.

        Returns:
            How far the run was, whether pictures or captions differ since, and a line about the learning rate where
            its course differs because the run has another length.

        Raises:
            CannotResume: it is of another base or of other pictures.
        """
        state = read_state(checkpoint)
        setup = self.setup
        is_other_data = check_base_and_data(checkpoint, state, self.base, setup.data_digest, allow)
        setup.adapter.restore(setup.denoiser, checkpoint / "adapter")
        self._restore_coordinates(checkpoint, state.get("coordinates") or {})
        if setup.text is not None:
            setup.text.restore(checkpoint / "adapter")
        try:
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state_for(state["optimizer"], self.trained))  # may copy the weights
        except (ValueError, KeyError) as error:
            raise CannotResume(f"cannot resume {checkpoint}: it is of another optimizer ({error})") from error
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        former = config_of(checkpoint)
        rate = float(self.lr_scheduler.get_last_lr()[0])
        self._adopt_settings(former)
        course = change_of_course(former.train, self.config.train, rate, float(self.lr_scheduler.get_last_lr()[0]))
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        progress = Progress.of(state)
        if "place" not in state:
            progress.place = progress.step * former.train.gradient_accumulation_steps * self.accelerator.num_processes
            progress.samples = order_of(setup.training.groups, former, setup.lengths).samples_before(progress.place)
        if self.accelerator.is_main_process:
            self.run.cut_log(state["log_bytes"])
            if changed:
                now = {change.name: change.now for change in changed}
                self.reporter.write({"step": progress.step, "changed": now})
        return progress, is_other_data, course

    @torch.no_grad()
    def _restore_coordinates(self, checkpoint: Path, held: dict[str, Tensor]) -> None:
        """Coordinates as they were: those that the adapter's matrices give differ by rounding.

        Raises:
            CannotResume: they stand for other matrices here.
        """
        for name, factor in subspace_factors(self.setup.denoiser):
            if name not in held or held[name].shape != factor.coordinates.shape:
                raise CannotResume(f"cannot resume {checkpoint}: it holds no coordinates that fit {name}")
            found = factor.coordinates.clone()
            factor.coordinates.copy_(held[name])
            # An average has other matrices than the weights that go on.
            if self.average.name is None and not torch.allclose(found, factor.coordinates, rtol=1e-2, atol=1e-4):
                raise CannotResume(
                    f"cannot resume {checkpoint}: the principal directions of {name} come out otherwise here than "
                    "where the run began. Go on there, or train on from its adapter: adapter.start_from"
                )

    def _adopt_settings(self, former: TrainConfig) -> None:
        """Optimizer and schedule come from the checkpoint with its rates; where settings differ, this run's count."""
        old, new = (
            build_optimizer(config.train, self.setup.denoiser, self.setup.text_groups(config)).param_groups
            for config in (former, self.config)
        )
        adopt_hyperparameters(self.optimizer.param_groups, old, new, self.lr_scheduler)
