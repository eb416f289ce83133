"""One run between two steps: advance, measure, save, restore."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.optimization import get_scheduler
from torch import Tensor

from fera.errors import FeraError
from fera.training.config import TrainConfig
from fera.training.data import some_of
from fera.training.draws import draw
from fera.training.objective import Losses, denoising_losses, loss_weights
from fera.training.order import order_of
from fera.training.parameters import adapter_off, build_optimizer
from fera.training.randomness import mixed_seed
from fera.training.reporting import Metrics, Reporter, collapse, in_words
from fera.training.setup import Setup
from fera.training.state import RunFolder, load_state
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
        self._config = config
        self._run = run
        self._accelerator = accelerator
        self._setup = setup
        self._reporter = reporter
        optimizer = build_optimizer(config.train, setup.denoiser)
        self._trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._lr_scheduler = get_scheduler(
            config.train.lr_scheduler,
            optimizer,
            num_warmup_steps=config.train.lr_warmup_steps,
            num_training_steps=config.train.steps,
        )
        self._order = order_of(setup.training.sizes, config)
        setup.denoiser.train()
        self._model, self._optimizer = accelerator.prepare(setup.denoiser, optimizer)
        # Takes accelerate's autocast off the denoiser's own forward: pipelines that draw pictures do without it.
        accelerator.unwrap_model(self._model, keep_fp32_wrapper=False)
        self._metrics = Metrics()
        self._window_seconds = 0.0
        self._training_seconds = 0.0
        self._held_out: dict[int, float] = {}
        self._rates = self._lr_scheduler.get_last_lr()
        self._words = ""
        self._collapse_was_said = False

    def advance(self) -> None:
        """One optimizer step."""
        began = time.monotonic()
        settings = self._config.train
        for micro in range(settings.gradient_accumulation_steps):
            with self._accelerator.accumulate(self._model):
                self._accelerator.backward(self._loss(micro))
                if self._accelerator.sync_gradients:
                    norm = self._accelerator.clip_grad_norm_(self._trained, settings.max_grad_norm)
                    # The gradient scaler of fp16 skips such a step and goes on.
                    if settings.mixed_precision != "fp16" and norm is not None and not torch.isfinite(norm):
                        raise self._not_finite("gradient", [])
                self._optimizer.step()
                self._optimizer.zero_grad()
        self._rates = self._lr_scheduler.get_last_lr()
        if not self._accelerator.optimizer_step_was_skipped:
            self._lr_scheduler.step()
        self.step += 1
        self._window_seconds += time.monotonic() - began
        self._report()

    def _loss(self, micro: int) -> Tensor:
        """Loss of one batch."""
        settings, setup, accelerator = self._config.train, self._setup, self._accelerator
        forward = self.step * settings.gradient_accumulation_steps + micro
        place = forward * accelerator.num_processes + accelerator.process_index
        batch = draw(setup.training, self._order, place, setup.process, self._config, accelerator.device)
        if self._config.adapter.lora_dropout > 0:
            torch.manual_seed(mixed_seed(self._config.seed, 2, place))
        with setup.adapter.routings(setup.denoiser) as routings, accelerator.autocast():
            losses = self._losses(batch.latents, batch.noise, batch.timesteps, batch.conditions, batch.mask)
        self._count(losses, routings[-1] if routings else None, batch.names)
        weights = loss_weights(setup.process, settings, batch.timesteps)
        if batch.weights is not None:
            weights = weights * batch.weights
        loss = (losses.denoising * weights).mean()
        if losses.consistency is not None:
            loss = loss + settings.consistency_weight * losses.consistency
        return loss

    def _losses(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        conditions: dict[str, Tensor],
        mask: Tensor | None,
    ) -> Losses:
        setup = self._setup
        adapted = setup.predictor(self._model, conditions)
        base = setup.predictor(setup.denoiser, conditions)

        def without_adapter(noisy: Tensor, at: Tensor) -> Tensor:
            with torch.no_grad(), adapter_off(setup.denoiser):
                return base(noisy, at)

        wants_base = self._config.train.consistency_weight > 0
        return denoising_losses(
            setup.process,
            latents,
            noise,
            timesteps,
            adapted,
            without_adapter if wants_base else None,
            setup.bands if wants_base else None,
            mask,
        )

    def _count(self, losses: Losses, routing: Routing | None, names: list[str]) -> None:
        """Add a forward to what is logged, over all processes, and stop if a loss is not finite."""
        denoising, consistency = losses.denoising.detach(), losses.consistency
        gates, shares = (routing.gates, routing.indicator) if routing is not None else (None, None)
        if self._accelerator.num_processes > 1:
            # As objects: batches of different buckets differ in length.
            if gates is not None and shares is not None:
                gates = torch.cat(gather_object([gates.cpu()]))
                shares = torch.cat(gather_object([shares.cpu()]))
            denoising = torch.cat(gather_object([denoising.cpu()]))
            if consistency is not None:
                consistency = self._accelerator.reduce(consistency.detach(), "mean")
        finite = torch.isfinite(denoising)
        if not finite.all() or (consistency is not None and not torch.isfinite(consistency)):
            alone = self._accelerator.num_processes == 1
            raise self._not_finite(
                "loss", [name for name, ok in zip(names, finite, strict=True) if not ok] if alone else []
            )
        self._metrics.add(denoising, consistency, gates, shares)

    def _not_finite(self, what: str, names: list[str]) -> FeraError:
        checkpoint = self._run.latest_checkpoint()
        kept = f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint was saved before"
        on = f" on {some_of(names)}" if names else ""
        return FeraError(
            f"the {what} is not finite at step {self.step + 1}{on}. {kept}. "
            "Lower train.learning_rate, or look at these pictures; with mixed_precision fp16, try bf16"
        )

    def _report(self) -> None:
        settings = self._config.train
        if self.step % settings.logging_steps == 0 or self.step == settings.steps:
            speed = self._metrics.samples / max(self._window_seconds, 1e-9)
            averages = self._metrics.averages()
            rates = [float(f"{rate:.6g}") for rate in self._rates]
            record = {"step": self.step, **averages, "lr": rates[0]}
            if "gates" in averages:
                record["router_lr"] = rates[-1]
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
        """Measure the held-out loss and draw the validation prompts."""
        if not (pictures or loss):
            return
        if self._accelerator.is_main_process:
            settings = self._config.validation
            if loss:
                value = held_out_loss(self._setup, settings, self._config.train.batch_size, self._accelerator.autocast)
                if value is not None:
                    self._held_out[self.step] = value
                    self._reporter.write({"step": self.step, "held_out_loss": float(f"{value:.6g}")})
                    self._reporter.say(f"step {self.step}: held-out loss {value:.4f}")
            if pictures and settings.prompts:
                device = self._accelerator.device
                path, images = draw_samples(self._setup, self._config, self._run.samples, self.step, device)
                self._reporter.say(f"step {self.step}: drew {path}")
                self._reporter.show(self.step, settings.prompts, images)
        self._accelerator.wait_for_everyone()

    def save_checkpoint(self) -> None:
        """Write what `restore` needs."""
        if self._accelerator.is_main_process:
            scaler = self._accelerator.scaler
            state = {
                "config": json.dumps(self._config.model_dump(mode="json")),
                "data": self._setup.data_digest,
                "optimizer": self._optimizer.state_dict(),
                "lr_scheduler": self._lr_scheduler.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else None,
                "held_out": self._held_out,
                "training_seconds": self._training_seconds,
                # What was counted since the last line of the log.
                "metrics": asdict(self._metrics),
                "window_seconds": self._window_seconds,
            }
            limit = self._config.train.checkpoints_total_limit
            self._run.save_checkpoint(self.step, state, self._save_adapter, keep=limit)
        self._accelerator.wait_for_everyone()

    def restore(self, checkpoint: Path) -> None:
        """Go back to a checkpoint."""
        state = load_state(checkpoint, self._config, self._setup.data_digest)
        self._setup.adapter.restore(self._setup.denoiser, checkpoint / "adapter")
        self._optimizer.load_state_dict(state["optimizer"])
        self._lr_scheduler.load_state_dict(state["lr_scheduler"])
        if self._accelerator.scaler is not None and state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self._held_out = state["held_out"]
        self._training_seconds = state["training_seconds"]
        self._metrics, self._window_seconds = Metrics(**state["metrics"]), state["window_seconds"]
        if self._accelerator.is_main_process:
            self._run.truncate_log(self.step)
        epoch = self._samples / len(self._setup.training)
        self._reporter.say(
            f"resumed {checkpoint}: step {self.step} of {self._config.train.steps}, epoch {epoch:.2f}, "
            f"learning rate {self._lr_scheduler.get_last_lr()[0]:.3g}; weights, optimizer and data order restored"
        )

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
        )
        if self._accelerator.is_main_process:
            self._save_adapter(self._run.adapter)
            self._run.summary.write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
        self._accelerator.wait_for_everyone()
        self._reporter.say(f"adapter: {self._run.adapter}; {self._setup.adapter.loading}")
        return summary

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
