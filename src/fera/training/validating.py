"""What a run measures and draws along the way, at which weights, and who hears of it."""

from dataclasses import dataclass

from accelerate import Accelerator

from fera.config import TrainConfig
from fera.training.folder.run_folder import RunFolder
from fera.training.processes.fsdp import is_sharded
from fera.training.progress import Progress
from fera.training.start.prepare import Setup
from fera.training.step.averages import Average
from fera.training.telling.reporter import Reporter
from fera.training.validation import draw_samples, held_out_loss


@dataclass(frozen=True)
class Validator:
    """Measures a run with the weights that are kept.

    Args:
        config: the configuration of the run.
        run: its folder.
        accelerator: the accelerator of the run.
        setup: what `prepare` made.
        reporter: told about losses and pictures.
        average: what is kept of the weights.
    """

    config: TrainConfig
    run: RunFolder
    accelerator: Accelerator
    setup: Setup
    reporter: Reporter
    average: Average

    def validate(self, progress: Progress, *, pictures: bool, loss: bool) -> None:
        """Measure the held-out loss and draw the validation prompts. All processes call it together.

        Args:
            progress: the progress of the run; notes the step and its loss.
            pictures: whether to draw.
            loss: whether to measure.
        """
        progress.validated = progress.step
        if pictures or loss:
            with self.average.applied():
                if self.accelerator.is_main_process or is_sharded(self.accelerator):
                    if loss:
                        self._measure(progress)
                    if pictures and self.config.validation.prompts:
                        self._draw(progress.step)
                self.accelerator.wait_for_everyone()

    def _measure(self, progress: Progress) -> None:
        batch_size, autocast = self.config.train.batch_size, self.accelerator.autocast
        value = held_out_loss(self.setup, self.config.validation, batch_size, autocast)
        if value is not None and self.accelerator.is_main_process:
            progress.held_out[progress.step] = value
            self.reporter.write({"step": progress.step, "held_out_loss": float(f"{value:.6g}")})
            self.reporter.say(f"step {progress.step}: held-out loss {value:.4f}")

    def _draw(self, step: int) -> None:
        path, images = draw_samples(self.setup, self.config, self.run.samples, step, self.accelerator.device)
        self.reporter.say(f"step {step}: drew {path}")
        self.reporter.show(step, self.config.validation.prompts, images)
