"""One run between two steps: advance, measure; `fera.training.saving` saves and restores."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from fera.config import TrainConfig
from fera.errors import FeraError
from fera.method.routing import Routing
from fera.models.families import Conditions
from fera.training.folder.resuming import Change
from fera.training.folder.run_folder import RunFolder
from fera.training.processes.exchange import agree, of_all_processes, rows_of_all_processes, share_gradients
from fera.training.processes.fsdp import clip_gradients, shard
from fera.training.progress import Progress
from fera.training.saving import Saver
from fera.training.start.prepare import Setup
from fera.training.step.averages import average_of
from fera.training.step.compiling import compile_denoiser, uncompiled
from fera.training.step.draws import Draw, draw
from fera.training.step.losses import Losses, denoising_losses, loss_weights
from fera.training.step.optimizers import build_lr_scheduler, build_optimizer, route_updates_of
from fera.training.step.parameters import adapter_off
from fera.training.step.randomness import is_chosen, mixed_seed
from fera.training.step.skipping import Fault, is_overflow
from fera.training.step.stages import run_order
from fera.training.summary import Summary, summarize
from fera.training.telling.reporter import Reporter, StepLines
from fera.training.trained.soft_prompt import phase_of
from fera.training.validating import Validator
from fera.tuner.fingerprint import fingerprint


class Trainer:
    """A run between two steps.

    Args:
        config: the configuration of the run.
        run: its folder.
        accelerator: device, precision, accumulation, processes.
        setup: what `prepare` made.
        reporter: told about progress.

    Attributes:
        progress: how far it is.
    """

    def __init__(
        self, config: TrainConfig, run: RunFolder, accelerator: Accelerator, setup: Setup, reporter: Reporter
    ) -> None:
        self.progress = Progress()
        self._config = config
        self._run = run
        self._accelerator = accelerator
        self._setup = setup
        self._reporter = reporter
        text_groups = setup.text_groups(config)
        optimizer = build_optimizer(config.train, setup.denoiser, text_groups)
        self._update_router = route_updates_of(config.adapter, setup.denoiser, optimizer)
        self._lr_scheduler = build_lr_scheduler(config.train, optimizer)
        self._batches = config.train.gradient_accumulation_steps * accelerator.num_processes  # of a step
        self._order = run_order(config, setup, self._batches)
        base = fingerprint(setup.denoiser)
        setup.denoiser.train()
        if setup.text is not None:
            setup.text.train()
        self._model, self._optimizer = shard(accelerator, setup.denoiser, optimizer, config.train.max_grad_norm)
        self._trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._phase = phase_of(config.train, setup.denoiser, self._trained)
        # Takes accelerate's autocast off the denoiser's own forward: pipelines that draw pictures do without it.
        accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)
        compile_denoiser(setup.denoiser, config.train.compile)
        self._average = average_of(config.train, optimizer, self._trained)
        self._fault: Fault | None = None
        self._names: list[str] = []
        self._lines = StepLines(config.train, reporter, self._optimizer, text_groups)
        self._validator = Validator(config, run, accelerator, setup, reporter, self._average)
        self._saver = Saver(
            config,
            run,
            accelerator,
            setup,
            reporter,
            base=base,
            optimizer=self._optimizer,
            lr_scheduler=self._lr_scheduler,
            average=self._average,
            trained=self._trained,
        )

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.step

    def advance(self) -> None:
        """One optimizer step.

        Raises:
            FeraError: too many steps in a row had to be skipped.
        """
        began = time.monotonic()
        self._fault, self._names = None, []
        self._enter_stage()
        if self._setup.text is not None:
            self._setup.text.at_step(self.step)
        for micro in range(self._config.train.gradient_accumulation_steps):
            with self._accelerator.accumulate(self._model):
                self._accelerator.backward(self._loss(micro))
                if self._accelerator.sync_gradients:
                    if self._setup.text is not None:  # the denoiser's are averaged by its wrapper
                        share_gradients(self._accelerator, self._setup.text.parameters)
                    self._update()
        rates = [float(rate) for rate in self._lr_scheduler.get_last_lr()]
        overflowed = self._fault is None and self._accelerator.optimizer_step_was_skipped
        if self._fault is None and not overflowed:
            self._lr_scheduler.step()
            self._average.update()
            if self._update_router is not None and self._update_router.updates is not None:
                self.progress.metrics.add_updates(self._update_router.updates)
        if self._fault is not None or not self.progress.is_sound:
            self.progress.skips.count(self._fault)
        self.progress.step += 1
        self._pass(self._batches)
        if self._fault is not None:
            self._report_skip(self._fault)
        elif overflowed:  # the scaler of fp16 goes on with a smaller scale
            self._reporter.write({"step": self.step, "skipped": "overflow"})
        self.progress.window_seconds += time.monotonic() - began
        self._lines.report(self.progress, rates)

    def _enter_stage(self) -> None:
        """Say and log which stage begins, where one does."""
        course = self._setup.course
        stage = course.entered(self.step) if course is not None else None
        if course is None or stage is None:
            return
        number, last = course.stages.index(stage) + 1, stage.start + (stage.steps or 0)
        self._reporter.say(
            f"stage {number} of {len(course.stages)}, {stage.name}: {len(stage.rows)} pictures, steps "
            f"{stage.start + 1} to {last}"
        )
        self._reporter.write({"step": self.step, "stage": stage.name, "stage_number": number})

    def _pass(self, batches: int) -> None:
        """Count batches as seen."""
        places = range(self.progress.place, self.progress.place + batches)
        self.progress.samples += sum(len(self._order.rows(place)) for place in places)
        self.progress.place = places.stop

    def _update(self) -> None:
        """Let the optimizer use the gradient, unless something about the step is not finite."""
        scaler = self._accelerator.scaler
        scale = scaler.get_scale() if scaler is not None else None
        settings = self._config.train
        if self._phase is not None:
            self._phase.hold(self.step)
        norm = clip_gradients(self._accelerator, self._optimizer, self._trained, settings.max_grad_norm)
        # Of all processes together, so that they agree.
        if norm is not None and not torch.isfinite(norm) and self._fault is None and not is_overflow(scale):
            self._fault = Fault("gradient", of_all_processes(self._accelerator, self._names))
        if self._fault is not None:
            self._optimizer.zero_grad()
        if self._fault is None or scaler is not None:  # the scaler skips by itself, and counts on being asked
            self._optimizer.step()
        self._optimizer.zero_grad()

    def _loss(self, micro: int) -> Tensor:
        """Loss of one batch."""
        settings, setup, accelerator = self._config.train, self._setup, self._accelerator
        place = self.progress.place + micro * accelerator.num_processes + accelerator.process_index
        batch = draw(setup.training, self._order, place, setup.process, self._config, accelerator.device)
        if self._config.adapter.lora_dropout > 0 or setup.text is not None:
            torch.manual_seed(mixed_seed(self._config.seed, 2, place))
        with setup.routings() as routings, accelerator.autocast():
            conditions = setup.conditions(batch.captions, batch.conditions)
            losses = self._losses(batch, conditions)
        levels = setup.process.noise_levels(batch.timesteps)
        self._count(losses, routings[-1] if routings else None, levels, batch.names)
        weights = loss_weights(setup.process, settings, batch.timesteps)
        if batch.weights is not None:
            weights = weights * batch.weights
        loss = (losses.denoising * weights).mean()
        if losses.consistency is not None:
            # Scaled so that its mean over many batches is that of the loss over all of them.
            loss = loss + settings.consistency_weight / settings.consistency_fraction * losses.consistency
        # A sample counts the same in a batch that its bucket does not fill.
        return loss * (len(batch.names) / settings.batch_size)

    def _losses(self, batch: Draw, conditions: Conditions) -> Losses:
        setup, settings = self._setup, self._config.train
        adapted = setup.predictor(self._model, conditions)
        base = setup.predictor(setup.denoiser, conditions)
        # By step: processes agree, and do what one process does that accumulates.
        wants_base = settings.consistency_weight > 0 and is_chosen(settings.consistency_fraction, self.step)

        def without_adapter(noisy: Tensor, at: Tensor) -> Tensor:
            with torch.no_grad(), adapter_off(setup.denoiser):
                return base(noisy, at)

        return denoising_losses(
            setup.process,
            batch.latents,
            batch.noise,
            batch.timesteps,
            adapted,
            without_adapter if wants_base else None,
            setup.bands if wants_base else None,
            batch.mask,
        )

    def _count(self, losses: Losses, routing: Routing | None, levels: Tensor, names: list[str]) -> None:
        """Add a forward to what is logged, over all processes, unless a loss is not finite."""
        denoising, consistency = losses.denoising.detach(), losses.consistency
        gates, shares = (routing.gates, routing.indicator) if routing is not None else (None, None)
        self._names += names
        if self._accelerator.num_processes > 1:
            if gates is not None and shares is not None:
                gates, shares = rows_of_all_processes(gates), rows_of_all_processes(shares)
                levels = rows_of_all_processes(levels)
            denoising = rows_of_all_processes(denoising)
            if consistency is not None:
                consistency = self._accelerator.reduce(consistency.detach(), "mean")
        finite = torch.isfinite(denoising)
        if finite.all() and (consistency is None or torch.isfinite(consistency)):
            self.progress.metrics.add(denoising, consistency, gates, shares, levels)
            return
        everyone = of_all_processes(self._accelerator, names)
        faulty = [name for name, ok in zip(everyone, finite, strict=True) if not ok] or everyone
        self._fault = Fault("loss", [*(self._fault.names if self._fault else ()), *faulty])

    def _report_skip(self, fault: Fault) -> None:
        """Say that a step was skipped, or that this were too many."""
        skips = self.progress.skips
        self._reporter.write({"step": self.step, "skipped": fault.what, "pictures": fault.names})
        if skips.in_a_row > self._config.train.max_skipped_steps or not self._saver.has_finite_weights():
            raise FeraError(
                f"{skips.describe(fault, self.step)}. {self._run.kept()}. Lower train.learning_rate (with "
                "`allow` train.learning_rate), or look at these pictures; with mixed_precision fp16, try bf16"
            )
        self._reporter.say(f"step {self.step} is skipped: {fault}{fault.on}")

    def validate(self, *, pictures: bool, loss: bool) -> None:
        """Measure the held-out loss and draw the validation prompts, with the weights that are kept."""
        with uncompiled(self._config):
            self._validator.validate(self.progress, pictures=pictures, loss=loss)

    def save_checkpoint(self) -> None:
        """Write what `restore` needs.

        Raises:
            FeraError: it cannot be written, or the weights are not finite.
        """
        self._saver.save(self.progress)

    def restore(self, checkpoint: Path, changed: Sequence[Change], allow: Sequence[str]) -> None:
        """Go back to a checkpoint, as `Saver.restore` does."""
        self.progress, is_other_data, rates = self._saver.restore(checkpoint, changed, allow)
        stage = self._setup.course.at(self.step) if self._setup.course is not None else None
        if stage is not None:
            self.progress.place = self.step * self._batches  # stages begin at steps, whatever those have seen
        elif is_other_data or any(change.name.startswith(("data.", "train.batch_size")) for change in changed):
            # Batches are other ones now: on with what the run has not seen.
            self.progress.place = self._order.place_after(self.progress.samples)
        epoch, steps = self.progress.samples / len(self._setup.training), self._config.train.steps
        place = f"step {self.step} of {steps}" if self.step < steps else f"step {self.step}"
        self._reporter.say(
            f"resumed {checkpoint}: {place}, epoch {epoch:.2f}, "
            f"learning rate {self._lr_scheduler.get_last_lr()[0]:.3g}; weights, optimizer and data order restored"
        )
        if self.step >= steps:
            self._reporter.say(f"  no step is left to train: train.steps is {steps}; more of them go on from here")
        elif rates is not None:
            self._reporter.say(f"  {rates}")
        if stage is not None and stage.start < self.step < self._config.train.steps:
            self._reporter.say(f"  in stage {stage.name}, from step {stage.start + 1} on")
        for change in changed:
            self._reporter.say(f"  changed, as allowed: {change}")
        if is_other_data:
            self._reporter.say("  changed, as allowed: pictures or captions")

    def finish(self, seconds: float) -> Summary:
        """Save the adapter and the summary; `seconds` is how long this start of the run took."""
        summary = summarize(
            config=self._config,
            setup=self._setup,
            adapter=self._run.adapter,
            progress=self.progress,
            samples=self.progress.samples,
            seconds=seconds,
            average=self._average.name,
        )
        self._saver.finish(summary, step=self.step)
        if summary.skipped_steps:
            self._reporter.say(
                f"{summary.skipped_steps} of {self.step} steps were skipped; log.jsonl names their pictures"
            )
        self._reporter.say(f"adapter: {self._run.adapter}; {self._setup.adapter.loading}")
        return summary

    def agree(self, flag: bool) -> bool:
        """Whether any process raises its flag: all of them must leave the loop at one step."""
        return agree(self._accelerator, flag)
