"""Section `validation`: what is measured and drawn along the way."""

from pydantic import Field, model_validator

from fera.config.section import Section


class ValidationConfig(Section):
    """Pictures and losses along the way, always at the same seeds, noise and timesteps."""

    prompts: list[str] = Field(default=[], description="Prompts to draw at the start, at the end, and in between.")
    sources: list[str] = Field(
        default=[],
        description="Source pictures of the prompts, for bases that edit or fill: a path for each prompt, several "
        'pictures of one as "a.png|b.png". For bases of image to video the picture to begin with, or a clip that '
        "begins so; held-out clips in turn when unset.",
    )
    masks: list[str] = Field(
        default=[], description="Masks of what is to be painted, a path for each prompt, for bases that fill."
    )
    negative_prompt: str = Field(default="", description="Negative prompt of all of them.")
    steps: int = Field(default=500, ge=0, description="Steps between drawings; 0: only at the start and at the end.")
    num_frames: int | None = Field(
        default=None,
        ge=1,
        description="Frames of a drawing, of a base of videos; the largest of data.num_frames when unset, else 1.",
    )
    seconds: float | None = Field(
        default=None,
        gt=0,
        description="Length in seconds of what is drawn, of a base of sound; the largest of data.seconds when unset.",
    )
    num_inference_steps: int = Field(default=24, ge=1, description="Denoising steps of a drawing.")
    guidance_scale: float = Field(default=2.0, ge=0, description="Guidance of a drawing.")
    seed: int = Field(
        default=0,
        ge=0,
        description="Seed of the first drawing, counting up from there, and of the held-out noise.",
    )
    loss_steps: int = Field(
        default=0, ge=0, description="Steps between held-out losses; 0: only at the start and at the end."
    )
    loss_samples: int = Field(
        default=64, ge=1, le=1_000_000, description="Samples of one held-out loss; pictures repeat if they are fewer."
    )

    @model_validator(mode="after")
    def _check(self) -> "ValidationConfig":
        for name in ("sources", "masks"):
            given = getattr(self, name)
            if given and len(given) != len(self.prompts):
                raise ValueError(
                    f"validation.{name} has {len(given)} entries for {len(self.prompts)} prompts: give one a prompt"
                )
        return self
