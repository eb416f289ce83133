"""Time to quality: when do adapters on the layers that matter have the loss of a LoRA on the attention alone?"""

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.meters import REPORTED_SECONDS, Clock
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from benchmarks.trainers import STYLE, style_folder
from fera.config import TrainConfig
from fera.config.reading import parse_config
from fera.training import Summary, train

STEPS = 400
# As long as the reference needs, a step count a try, until its loss is reached.
_TRIES = (40, 60, 80, 100, 130, 160, 200, 400)
_WIDE = {
    "target_modules": ["conv*", "time_emb_proj", "proj_in", "proj_out", "to_*"],
    "exclude_modules": ["conv_in", "conv_out"],
}
_METHODS: dict[str, dict[str, Any]] = {
    "LoRA on the attention": {"plain": {"peft_type": "LORA", "r": 12, "lora_alpha": 12}},
    "LoRA on the wide layers": {"plain": {"peft_type": "LORA", "r": 3, "lora_alpha": 3}, **_WIDE},
    "fera on the wide layers": {"r": 1, **_WIDE},
}


class _Laps:
    """A listener that notes when the first and the last step are done."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first = self._last = 0.0
        self._steps = 0

    def say(self, message: str) -> None:
        """Nothing."""

    def advance(self, what: str, done: int, total: int, details: str = "") -> None:
        """Note a step."""
        if what == "training":
            self._last, self._steps = self._clock(), done
            if done == 1:
                self._first = self._last

    @property
    def seconds(self) -> float:
        """Of all steps, the first taken for one like the others."""
        return (self._last - self._first) * self._steps / max(self._steps - 1, 1)


def races(setting: Setting) -> Iterator[Race]:
    """Training alone, start-up and validation left out; losses are those of validation names, of one style and seed."""
    most, tries = (3, (2, 3)) if setting.small else (STEPS, _TRIES)
    with style_folder(setting.small) as folder, TemporaryDirectory() as parent:

        def learned(method: str, steps: int, listener: Any) -> Summary:
            held_out = folder / ("test" if setting.small else "validation")  # a small folder has no validation split
            return train(_config(folder, held_out, Path(parent), method, steps), overwrite=True, listener=listener)

        def timed(method: str, steps: int) -> Callable[[Clock], float]:
            def work(clock: Clock) -> float:
                laps = _Laps(clock)
                learned(method, steps, laps)
                return laps.seconds

            return work

        reference, *others = _METHODS
        loss = _loss(learned(reference, most, _Laps(lambda: 0.0)))
        contestants, comparisons = {f"{reference}, {most} steps": timed(reference, most)}, []
        for method in others:
            for steps in tries:
                found = _loss(learned(method, steps, _Laps(lambda: 0.0)))
                if found <= loss:
                    break
            name = f"{method}, {steps} steps"
            contestants[name] = timed(method, steps)
            comparisons.append(Comparison(name, next(iter(contestants)), 0.25 if found <= loss else None))
        yield Race(
            f"training to a validation loss of {loss:.4f}, emoji base, {STYLE}, batch 8",
            contestants,
            comparisons,
            rounds=1,
            warm_up=0,
            meter=REPORTED_SECONDS,
        )


def _config(folder: Path, held_out: Path, parent: Path, method: str, steps: int) -> TrainConfig:
    """As in studies/layers.toml, with a schedule of its own length."""
    return parse_config(
        {
            "base": "emoji",
            "output_dir": parent / "run",
            "data": {
                "train_data_dir": folder / "train",
                "validation_data_dir": held_out,
                "cache_dir": parent / "cache",
            },
            "adapter": _METHODS[method],
            "train": {
                "steps": steps,
                "batch_size": 8,
                "learning_rate": 4e-3,
                "lr_scheduler": "cosine",
                "lr_warmup_steps": steps // 10,
                "caption_dropout": 0.1,
                "logging_steps": steps,
                "checkpointing_steps": steps,
                "report_to": "none",
            },
            "validation": {"loss_samples": 272, "loss_steps": 0},
        },
        "the benchmark of quality",
    )


def _loss(summary: Summary) -> float:
    assert summary.held_out_loss_after is not None
    return summary.held_out_loss_after
