"""Whether a pipeline's scheduler gives its denoiser timesteps that a router can read."""

import weakref
from typing import Any

from fera.errors import FeraError
from fera.models.noise import counts_angles


class SchedulerOf:
    """The scheduler that a pipeline has at the moment; none of a denoiser without a pipeline.

    Args:
        pipe: the pipeline, which is not kept alive.
    """

    def __init__(self, pipe: object = None) -> None:
        self._pipe = None if pipe is None else weakref.ref(pipe)

    def __reduce__(self) -> tuple[type["SchedulerOf"], tuple[()]]:
        return (SchedulerOf, ())  # a copied denoiser is in no pipeline

    def check(self, adapter: str) -> None:
        """Refuse a scheduler that gives log sigma.

        Args:
            adapter: one whose router reads the timestep.

        Raises:
            FeraError: it does.
        """
        pipe: Any = None if self._pipe is None else self._pipe()
        scheduler = getattr(pipe, "scheduler", None)
        config = getattr(scheduler, "config", None)
        kind = (getattr(config, "timestep_type", None), getattr(config, "prediction_type", None))
        if counts_angles(scheduler):
            return
        if kind == ("continuous", "v_prediction") or hasattr(scheduler, "precondition_noise"):
            raise FeraError(
                f"the router of adapter {adapter!r} reads the timestep, and {type(scheduler).__name__} gives "
                "log(sigma) / 4 in its place, as which pure noise looks like a clean latent. Draw with a scheduler "
                "that gives timesteps (of EulerDiscreteScheduler: timestep_type='discrete'), or with an adapter whose "
                "router_input has no timestep"
            )
