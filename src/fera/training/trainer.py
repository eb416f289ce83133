"""One run between two steps: advance, measure, save, restore."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from torch import Tensor

from fera.errors import FeraError
from fera.files import replace_text
from fera.fingerprint import fingerprint
from fera.training.averages import average_of
from fera.training.checkpoints import read_state
from fera.training.config import TrainConfig
from fera.training.draws import Draw, draw
from fera.training.families import Conditions
from fera.training.objective import Losses, denoising_losses, loss_weights
from fera.training.optimizers import build_optimizer
from fera.training.order import order_of
from fera.training.parameters import adapter_off
from fera.training.randomness import is_chosen, mixed_seed
from fera.training.reporting import Metrics, Reporter, collapse, in_words
from fera.training.resuming import CannotResume, Change, adopt_hyperparameters, check_base_and_data, config_of
from fera.training.setup import Setup
from fera.training.sharding import clip_gradients, gathered, is_sharded, local, shard, state_for, whole_state
from fera.training.skipping import Fault, Skips, is_overflow
from fera.training.state import RunFolder
from fera.training.summary import Summary, summarize
from fera.training.validation import draw_samples, held_out_loss
from fera.tuner import Routing


class Trainer:
    """A run between two steps.

    Args:
        config: of the run.
        run: its folder.
        accelerator: device, precision, accumulation, processes.
        setup: what `prepare` made.
        reporter: told about progress.
    """

    def __init__(
        self, config: TrainConfig, run: RunFolder, accelerator: Accelerator, setup: Setup, reporter: Reporter
    ) -> None:
        self.step = 0
        self.validated = -1  # the last step that was
        self._config = config
        self._run = run
        self._accelerator = accelerator
        self._setup = setup
        self._reporter = reporter
        self._text_groups = self._text_groups_of(config)
        optimizer = build_optimizer(config.train, setup.denoiser, self._text_groups)
        self._lr_scheduler = get_scheduler(
            config.train.lr_scheduler,
            optimizer,
            num_warmup_steps=config.train.lr_warmup_steps,
            num_training_steps=config.train.steps,
        )
        self._order = order_of(setup.training.sizes, config)
        self._base = fingerprint(setup.denoiser)
        setup.denoiser.train()
        if setup.text is not None:
            setup.text.train()
        self._model, self._optimizer = shard(accelerator, setup.denoiser, optimizer, config.train.max_grad_norm)
        self._trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # Takes accelerate's autocast off the denoiser's own forward: pipelines that draw pictures do without it.
        accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)
        self._skips = Skips()
        self._fault: Fault | None = None
        self._names: list[str] = []
        self._average = average_of(config.train, optimizer, self._trained)
        self._metrics = Metrics()
        self._window_seconds = 0.0
        self._training_seconds = 0.0
        self._held_out: dict[int, float] = {}
        self._rates = self._lr_scheduler.get_last_lr()
        self._words = ""
        self._collapse_was_said = False

    def advance(self) -> None:
        """One optimizer step.

        Raises:
            FeraError: too many steps in a row had to be skipped.
        """
        began = time.monotonic()
        self._fault, self._names = None, []
        if self._setup.text is not None:
            self._setup.text.at_step(self.step)
        for micro in range(self._config.train.gradient_accumulation_steps):
            with self._accelerator.accumulate(self._model):
                self._accelerator.backward(self._loss(micro))
                if self._accelerator.sync_gradients:
                    self._share_text_gradients()
                    self._update()
        self._rates = self._lr_scheduler.get_last_lr()
        overflowed = self._fault is None and self._accelerator.optimizer_step_was_skipped
        if self._fault is None and not overflowed:
            self._lr_scheduler.step()
            self._average.update()
        self._skips.count(self._fault)
        self.step += 1
        if self._fault is not None:
            self._report_skip(self._fault)
        elif overflowed:  # the scaler of fp16 goes on with a smaller scale
            self._reporter.write({"step": self.step, "skipped": "overflow"})
        self._window_seconds += time.monotonic() - began
        self._report()

    def _update(self) -> None:
        """Let the optimizer use the gradient, unless something about the step is not finite."""
        scaler = self._accelerator.scaler
        scale = scaler.get_scale() if scaler is not None else None
        settings = self._config.train
        norm = clip_gradients(self._accelerator, self._optimizer, self._trained, settings.max_grad_norm)
        # Of all processes together, so that they agree.
        if norm is not None and not torch.isfinite(norm) and self._fault is None and not is_overflow(scale):
            self._fault = Fault("gradient", self._of_all_processes(self._names))
        if self._fault is not None:
            self._optimizer.zero_grad()
        if self._fault is None or scaler is not None:  # the scaler skips by itself, and counts on being asked
            self._optimizer.step()
        self._optimizer.zero_grad()

    def _loss(self, micro: int) -> Tensor:
        """Loss of one batch."""
        settings, setup, accelerator = self._config.train, self._setup, self._accelerator
        forward = self.step * settings.gradient_accumulation_steps + micro
        place = forward * accelerator.num_processes + accelerator.process_index
        batch = draw(setup.training, self._order, place, setup.process, self._config, accelerator.device)
        if self._config.adapter.lora_dropout > 0 or setup.text is not None:
            torch.manual_seed(mixed_seed(self._config.seed, 2, place))
        with setup.adapter.routings(setup.denoiser) as routings, accelerator.autocast():
            conditions = setup.conditions(batch.captions, batch.conditions)
            losses = self._losses(batch, conditions)
        self._count(losses, routings[-1] if routings else None, batch.names)
        weights = loss_weights(setup.process, settings, batch.timesteps)
        if batch.weights is not None:
            weights = weights * batch.weights
        loss = (losses.denoising * weights).mean()
        if losses.consistency is not None:
            # Scaled so that its mean over many batches is that of the loss over all of them.
            loss = loss + settings.consistency_weight / settings.consistency_fraction * losses.consistency
        return loss

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

    def _share_text_gradients(self) -> None:
        """Average over the processes what is outside of the denoiser, which does so by itself."""
        if self._setup.text is not None and self._accelerator.num_processes > 1:
            for parameter in self._setup.text.parameters:
                if parameter.grad is not None:
                    parameter.grad = self._accelerator.reduce(parameter.grad, "mean")

    def _count(self, losses: Losses, routing: Routing | None, names: list[str]) -> None:
        """Add a forward to what is logged, over all processes, unless a loss is not finite."""
        denoising, consistency = losses.denoising.detach(), losses.consistency
        gates, shares = (routing.gates, routing.indicator) if routing is not None else (None, None)
        self._names += names
        if self._accelerator.num_processes > 1:
            # As objects: batches of different buckets differ in length.
            if gates is not None and shares is not None:
                gates = torch.cat(gather_object([gates.cpu()]))
                shares = torch.cat(gather_object([shares.cpu()]))
            denoising = torch.cat(gather_object([denoising.cpu()]))
            if consistency is not None:
                consistency = self._accelerator.reduce(consistency.detach(), "mean")
        finite = torch.isfinite(denoising)
        if finite.all() and (consistency is None or torch.isfinite(consistency)):
            self._metrics.add(denoising, consistency, gates, shares)
            return
        everyone = self._of_all_processes(names)
        faulty = [name for name, ok in zip(everyone, finite, strict=True) if not ok] or everyone
        self._fault = Fault("loss", [*(self._fault.names if self._fault else ()), *faulty])

    def _of_all_processes(self, names: list[str]) -> list[str]:
        if self._accelerator.num_processes == 1:
            return list(names)
        return [name for some in gather_object([names]) for name in some]

    def _report_skip(self, fault: Fault) -> None:
        """Say that a step was skipped, or that this were too many."""
        self._reporter.write({"step": self.step, "skipped": fault.what, "pictures": fault.names})
        if self._skips.in_a_row > self._config.train.max_skipped_steps or not self._has_finite_weights:
            raise FeraError(
                f"{self._skips.describe(fault, self.step)}. {self._run.kept()}. Lower train.learning_rate (with "
                "--resume.allow train.learning_rate), or look at these pictures; with mixed_precision fp16, try bf16"
            )
        self._reporter.say(f"step {self.step} is skipped: {fault}{fault.on}")

    def _report(self) -> None:
        settings = self._config.train
        if self.step % settings.logging_steps == 0 or self.step == settings.steps:
            speed = self._metrics.samples / max(self._window_seconds, 1e-9)
            averages = self._metrics.averages()
            rates = [float(f"{rate:.6g}") for rate in self._rates]
            record = {"step": self.step, **averages, "lr": rates[0]}
            if "gates" in averages:
                record["router_lr"] = rates[2]
            for group, rate in zip(self._text_groups, rates[3:], strict=False):
                trains = any(parameter.requires_grad for parameter in group["params"])
                record[f"{group['name']}_lr"] = rate if trains else 0.0
            if (factor := self._optimizer.param_groups[0].get("d")) is not None:
                record["d"] = float(f"{factor:.6g}")  # Prodigy's estimate, which multiplies the rate
            record["samples_per_second"] = round(speed, 3)
            self._reporter.write(record, self._metrics.distributions())
            self._words = in_words(averages, speed)
            if (line := collapse(averages)) and not self._collapse_was_said:
                self._collapse_was_said = True
                self._reporter.say(f"step {self.step}: {line}")
            self._training_seconds += self._window_seconds
            self._metrics, self._window_seconds = Metrics(), 0.0
        self._reporter.advance("training", self.step, settings.steps, self._words)

    def validate(self, *, pictures: bool, loss: bool) -> None:
        """Measure the held-out loss and draw the validation prompts, with the weights that are kept."""
        self.validated = self.step
        if pictures or loss:
            with self._average.applied():
                self._validate(pictures=pictures, loss=loss)

    def _validate(self, *, pictures: bool, loss: bool) -> None:
        is_main = self._accelerator.is_main_process
        if is_main or is_sharded(self._accelerator):
            settings = self._config.validation
            if loss:
                value = held_out_loss(self._setup, settings, self._config.train.batch_size, self._accelerator.autocast)
                if value is not None and is_main:
                    self._held_out[self.step] = value
                    self._reporter.write({"step": self.step, "held_out_loss": float(f"{value:.6g}")})
                    self._reporter.say(f"step {self.step}: held-out loss {value:.4f}")
            if pictures and settings.prompts:
                device = self._accelerator.device
                path, images = draw_samples(self._setup, self._config, self._run.samples, self.step, device)
                self._reporter.say(f"step {self.step}: drew {path}")
                self._reporter.show(self.step, settings.prompts, images)
        self._accelerator.wait_for_everyone()

    @property
    def is_sound(self) -> bool:
        """Whether the last step was used; if not, the weights may be what is wrong, and make no good checkpoint."""
        return self._skips.in_a_row == 0

    def save_checkpoint(self) -> None:
        """Write what `restore` needs.

        Raises:
            FeraError: it cannot be written, or the weights are not finite.
        """
        self._check_weights()
        optimizer = whole_state(self._optimizer.state_dict())
        with gathered(self._setup.denoiser):
            self._write_checkpoint(optimizer)
        self._accelerator.wait_for_everyone()

    def _write_checkpoint(self, optimizer: dict[str, Any]) -> None:
        if self._accelerator.is_main_process:
            scaler = self._accelerator.scaler
            state = {
                "data": self._setup.data_digest,
                "base": self._base,
                "optimizer": optimizer,
                "lr_scheduler": self._lr_scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "average": self._average.state_dict(),
                "held_out": self._held_out,
                "training_seconds": self._training_seconds,
                # What was counted since the last line of the log.
                "metrics": asdict(self._metrics),
                "window_seconds": self._window_seconds,
                "skips": self._skips.state(),
                "validated": self.validated,
            }
            keep = self._config.train.checkpoints_total_limit if self.is_sound else None
            with self._average.applied():
                self._run.save_checkpoint(self.step, self._config, state, self._save_adapter, keep=keep)

    @property
    def _has_finite_weights(self) -> bool:
        is_finite = all(bool(torch.isfinite(local(parameter)).all()) for parameter in self._trained)
        return not self.agree(not is_finite)

    def _check_weights(self) -> None:
        if not self._has_finite_weights:
            raise FeraError(
                f"the weights are not finite after step {self.step}, so they are not saved. {self._run.kept()}. Lower "
                "train.learning_rate (with --resume.allow train.learning_rate)"
            )

    def restore(self, checkpoint: Path, changed: Sequence[Change], allow: Sequence[str]) -> None:
        """Go back to a checkpoint.

        Args:
            checkpoint: its folder.
            changed: settings that differ from it.
            allow: what may differ; "data" for the pictures and captions.

        Raises:
            CannotResume: it is of another base or of other pictures.
        """
        state = read_state(checkpoint)
        setup = self._setup
        is_other_data = check_base_and_data(checkpoint, state, self._base, setup.data_digest, allow)
        setup.adapter.restore(setup.denoiser, checkpoint / "adapter")
        if setup.text is not None:
            setup.text.restore(checkpoint / "adapter")
        try:
            self._average.load_state_dict(state["average"])
            self._optimizer.load_state_dict(state_for(state["optimizer"], self._trained))  # may copy the weights
        except (ValueError, KeyError) as error:
            raise CannotResume(f"cannot resume {checkpoint}: it is of another optimizer ({error})") from error
        self._lr_scheduler.load_state_dict(state["lr_scheduler"])
        self._adopt_settings(checkpoint)
        if self._accelerator.scaler is not None and state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.validated = state["step"], state["validated"]
        self._held_out = state["held_out"]
        self._training_seconds = state["training_seconds"]
        self._metrics, self._window_seconds = Metrics(**state["metrics"]), state["window_seconds"]
        self._skips = Skips(**state["skips"])
        if self._accelerator.is_main_process:
            self._run.cut_log(state["log_bytes"])
            if changed:
                self._reporter.write({"step": self.step, "changed": {change.name: change.now for change in changed}})
        self._report_restored(checkpoint, changed, is_other_data)

    def _adopt_settings(self, checkpoint: Path) -> None:
        """Optimizer and schedule come from the checkpoint with its rates; where settings differ, this run's count."""
        old, new = (
            build_optimizer(config.train, self._setup.denoiser, self._text_groups_of(config)).param_groups
            for config in (config_of(checkpoint), self._config)
        )
        if any(_without_parameters(group) != _without_parameters(other) for group, other in zip(old, new, strict=True)):
            adopt_hyperparameters(self._optimizer.param_groups, old, new, self._lr_scheduler)

    def _text_groups_of(self, config: TrainConfig) -> list[dict[str, Any]]:
        return self._setup.text.groups(config) if self._setup.text is not None else []

    def _report_restored(self, checkpoint: Path, changed: Sequence[Change], is_other_data: bool) -> None:
        epoch = self._samples / len(self._setup.training)
        self._reporter.say(
            f"resumed {checkpoint}: step {self.step} of {self._config.train.steps}, epoch {epoch:.2f}, "
            f"learning rate {self._lr_scheduler.get_last_lr()[0]:.3g}; weights, optimizer and data order restored"
        )
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
            samples=self._samples,
            seconds=seconds,
            training_seconds=self._training_seconds,
            held_out=self._held_out,
            skipped_steps=self._skips.total,
            average=self._average.name,
        )
        self._check_weights()
        with gathered(self._setup.denoiser):
            self._write_adapter(summary)
        self._accelerator.wait_for_everyone()
        if self._skips.total:
            self._reporter.say(f"{self._skips.total} of {self.step} steps were skipped; log.jsonl names their pictures")
        self._reporter.say(f"adapter: {self._run.adapter}; {self._setup.adapter.loading}")
        return summary

    def _write_adapter(self, summary: Summary) -> None:
        if self._accelerator.is_main_process:
            try:
                with self._average.applied():
                    self._save_adapter(self._run.adapter)
            except FeraError as error:  # a full disk, for one
                raise FeraError(f"{error}. {self._run.kept()}") from error
            replace_text(self._run.summary, json.dumps(asdict(summary), indent=2) + "\n")

    def agree(self, flag: bool) -> bool:
        """Whether any process raises its flag: all of them must leave the loop at one step."""
        if self._accelerator.num_processes == 1:
            return flag
        flags = self._accelerator.gather(torch.tensor([int(flag)], device=self._accelerator.device))
        return bool(flags.any())

    @property
    def _samples(self) -> int:
        """Examples seen so far."""
        forwards = self.step * self._config.train.gradient_accumulation_steps
        return self._order.samples_before(forwards * self._accelerator.num_processes)

    def _save_adapter(self, folder: Path) -> None:
        self._setup.adapter.save(self._setup.pipe, folder)


def _without_parameters(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
