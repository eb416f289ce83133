"""What a run remembers between two steps, besides its weights and its optimizer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fera.training.step.skipping import Skips
from fera.training.telling.metrics import Metrics


@dataclass
class Progress:
    """How far a run is; a checkpoint keeps all of it.

    Args:
        step: optimizer steps taken.
        place: batches taken of the order of examples, over all processes.
        samples: examples seen.
        validated: the last step that was; -1 before any.
        skips: steps left out.
        held_out: step to held-out loss.
        training_seconds: of all optimizer steps up to the last line of the log, over all starts of the run.
        window_seconds: the seconds of the steps since that line.
        metrics: what was counted since that line.
    """

    step: int = 0
    place: int = 0
    samples: int = 0
    validated: int = -1
    skips: Skips = field(default_factory=Skips)
    held_out: dict[int, float] = field(default_factory=dict)
    training_seconds: float = 0.0
    window_seconds: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def is_sound(self) -> bool:
        """Whether the last step was used; if not, the weights may be what is wrong, and make no good checkpoint."""
        return self.skips.in_a_row == 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: tensors and plain values."""
        return asdict(self)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Progress":
        """Progress as a checkpoint kept it, among other things; the first ones had no `place` and `samples`."""
        kept = {one.name: state[one.name] for one in fields(cls) if one.name in state}
        return cls(**kept | {"skips": Skips(**kept["skips"]), "metrics": Metrics(**kept["metrics"])})
