r"""The clean latent that a prediction implies.

With :math:`z = s\,z_0 + a\,\epsilon`, signal :math:`s` and amount of noise :math:`a`, each kind of prediction names the
clean latent :math:`\hat z_0`:

.. math:: \epsilon: \frac{z - a\,\epsilon}{s} \qquad v = s\,\epsilon - a\,z_0: s\,z - a\,v \qquad
          \text{flow } u = \epsilon - z_0,\ s = 1 - a: z - a\,u
"""

import math
from typing import Any

import torch
from torch import Tensor

from fera.errors import FeraError
from fera.models.noise import NoiseProcess

_KINDS = ("epsilon", "v_prediction", "flow_prediction", "sample")


def denoised(kind: str, noisy: Tensor, prediction: Tensor, signal: Tensor | float, amount: Tensor | float) -> Tensor:
    """Clean latent that a prediction implies.

    Args:
        kind: "epsilon", "v_prediction", "flow_prediction" or "sample".
        noisy: any shape.
        prediction: same shape.
        signal: s, broadcastable; above 0 for "epsilon".
        amount: a, likewise.

    Returns:
        The shape of `noisy`, float32.

    Raises:
        FeraError: the kind is none of these.
    """
    noisy, prediction = noisy.float(), prediction.float()
    if kind == "epsilon":
        return (noisy - amount * prediction) / signal
    if kind == "v_prediction":
        return signal * noisy - amount * prediction
    if kind == "flow_prediction":
        return noisy - amount * prediction
    if kind == "sample":
        return prediction
    raise FeraError(f"the clean latent of a prediction of kind {kind!r} is unknown; known: {', '.join(_KINDS)}")


def process_scales(process: NoiseProcess, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and amount of noise of a noise process.

    Args:
        process: the process.
        timesteps: shape (B,).

    Returns:
        Two tensors of shape (B, 1, 1, 1), float32.
    """
    one = torch.ones(len(timesteps), 1, 1, 1, device=timesteps.device)
    nothing = torch.zeros_like(one)
    return process.add_noise(one, nothing, timesteps), process.add_noise(nothing, one, timesteps)


def check_scheduler(scheduler: Any) -> str:
    """What the denoiser of a scheduler predicts.

    Args:
        scheduler: a diffusers scheduler.

    Returns:
        One of the kinds of `denoised`.

    Raises:
        FeraError: the clean latent cannot be told from what this scheduler is given.
    """
    name = type(scheduler).__name__
    if _is_flow(scheduler):
        return "flow_prediction"
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in _KINDS or getattr(scheduler, "alphas_cumprod", None) is None:
        raise FeraError(
            f"fera cannot tell the predicted clean latent of a {name} (it predicts {kind!r}); it can for schedulers of "
            "flow matching, and for those with alphas_cumprod that predict epsilon, v_prediction or sample. Give the "
            "pipeline such a scheduler: pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)"
        )
    return kind


def clean_after_step(scheduler: Any, output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """Clean latent that the model's output implied in a scheduler's step that has just ended.

    Args:
        scheduler: a diffusers scheduler, right after its `step`.
        output: the model's output that the step got.
        timestep: its timestep.
        sample: its latent, any shape.

    Returns:
        The shape of `sample`, float32.

    Raises:
        FeraError: as `check_scheduler`.
    """
    kind = check_scheduler(scheduler)
    signal, amount, spread = _scales_after_step(scheduler, float(torch.as_tensor(timestep).flatten()[0]))
    return denoised(kind, sample.float() / spread, -output if _is_inverted(scheduler) else output, signal, amount)


def _is_inverted(scheduler: Any) -> bool:
    """Whether sigmas say how clean a latent is, and predictions point to the picture: OmniGen, Mochi, MiniMax Music."""
    return bool(scheduler.config.get("invert_sigmas", False))


def _is_flow(scheduler: Any) -> bool:
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas", False))


def _scales_after_step(scheduler: Any, timestep: float) -> tuple[float, float, float]:
    """Signal, amount, and by how much the scheduler's own latent is larger than signal and noise make it."""
    sigma = _sigma_of_last_step(scheduler)
    if _is_flow(scheduler):
        sigma = timestep / scheduler.config.num_train_timesteps if sigma is None else sigma
        amount = 1 - sigma if _is_inverted(scheduler) else sigma
        return 1 - amount, amount, 1.0
    if sigma is None:
        alpha = float(scheduler.alphas_cumprod[int(timestep)])
        return math.sqrt(alpha), math.sqrt(1 - alpha), 1.0
    signal = 1 / math.sqrt(1 + sigma**2)
    # The DPM family keeps the variance of its latent; Euler's family keeps the signal and lets the noise grow.
    keeps_variance = hasattr(scheduler, "_sigma_to_alpha_sigma_t")
    return signal, sigma * signal, 1.0 if keeps_variance else 1 / signal


def _sigma_of_last_step(scheduler: Any) -> float | None:
    # Schedulers count their steps at the end of each. Those that go by alphas_cumprod have no sigmas.
    sigmas, index = getattr(scheduler, "sigmas", None), getattr(scheduler, "step_index", None)
    return None if sigmas is None or index is None else float(sigmas[index - 1])
