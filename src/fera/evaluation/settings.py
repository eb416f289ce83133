"""What an evaluation looks at, and how much of it."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from fera.errors import FeraError

Features = Literal["auto", "judge", "inception", "clip", "dinov2"]


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Two evaluations compare where their settings and folders are the same: then they meet the same pictures at the
    same noise and timesteps, and draw the same prompts from the same noise.

    Args:
        loss_samples: held-out denoising samples, at least 1; pictures are gone through again and again, each time
            with other noise.
        num_bands: bands that the error of the prediction is split into, at least 2.
        kappa: finest scale of those bands, in (0, 1]. It is the ruler of the evaluation; the adapter's own bands do
            not matter here.
        prompts: what to draw; the folder's captions when left out.
        max_prompts: how many of the folder's captions to draw, at least 1, chosen by their hash; all of them when
            None. Prompts that are given are all drawn.
        images_per_prompt: pictures of each prompt, from different noise; 0 draws none, and only the loss is measured.
        num_inference_steps: denoising steps of a picture, at least 1.
        guidance_scale: strength of classifier-free guidance.
        resolution: side of the pictures in pixels; the base's own when left out.
        batch_size: samples or pictures at a time, at least 1; does not change results but for rounding.
        seed: the seed of noise and timesteps.
        features: network whose features FID, KID, similarity, drift and diversity rest on. "auto" is the judge where it
            knows the folder's style, and none elsewhere; the other names are taken or fail.
        clip_model: folder or Hub id of the CLIP model of `features="clip"`.
        dinov2_model: folder or Hub id of the DINOv2 model of `features="dinov2"`.
        drift_prompts: prompts that have nothing to do with what was learned: each is drawn with the adapter and
            without it, and the drift is how far apart the two are. None draws none.

    Raises:
        FeraError: a value is out of its range.
    """

    loss_samples: int = 256
    num_bands: int = 3
    kappa: float = 1 / 128
    prompts: tuple[str, ...] | None = None
    max_prompts: int | None = 64
    images_per_prompt: int = 1
    num_inference_steps: int = 16
    guidance_scale: float = 3.0
    resolution: int | None = None
    batch_size: int = 8
    seed: int = 0
    features: Features = "auto"
    clip_model: str = "openai/clip-vit-base-patch32"
    dinov2_model: str = "facebook/dinov2-base"
    drift_prompts: tuple[str, ...] | None = None

    # For configurations that embed this in a pydantic model: a mistyped key is an error there too.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, least in (
            ("loss_samples", 1),
            ("num_bands", 2),
            ("images_per_prompt", 0),
            ("num_inference_steps", 1),
            ("batch_size", 1),
            ("guidance_scale", 0),
        ):
            value = getattr(self, name)
            if not value >= least:
                raise FeraError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.kappa <= 1:
            raise FeraError(f"kappa must lie in (0, 1], got {self.kappa!r}")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise FeraError(f"max_prompts must be at least 1, got {self.max_prompts}; images_per_prompt = 0 draws none")
        for name, instead in (("prompts", "draw the folder's captions"), ("drift_prompts", "measure no drift")):
            value = getattr(self, name)
            if isinstance(value, str):
                raise FeraError(f"{name} must be a list of prompts, got the string {value!r}")
            if value is not None:
                object.__setattr__(self, name, tuple(value))
                if not value:
                    raise FeraError(f"{name} is empty; leave it out to {instead}")
        if self.drift_prompts is not None and not self.images_per_prompt:
            raise FeraError("drift_prompts are drawn, and images_per_prompt = 0 draws nothing; leave one of them out")
        if self.features not in get_args(Features):
            raise FeraError(f"features must be one of {', '.join(get_args(Features))}, got {self.features!r}")
