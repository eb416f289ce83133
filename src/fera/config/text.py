"""Sections `text_encoder` and `tokens`: what the text encoders learn."""

from typing import Any

from pydantic import Field, model_validator

from fera.config.section import Section, check_unused

# The default of `target_modules` when CLIP alone could learn.
CLIP_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
_ENCODERS = (
    "Which text encoders, by their names in the pipeline, such as `text_encoder_2`; when unset, those that are CLIP, "
    "or all where none is."
)


class TextEncoderConfig(Section):
    """LoRA on text encoders, trained beside the denoiser's experts; [text.md](text.md) tells when."""

    train_text_encoder: bool = Field(default=False, description="Train LoRA on text encoders.")
    encoders: list[str] | None = Field(default=None, min_length=1, description=_ENCODERS)
    r: int = Field(default=4, ge=1, le=16384, description="Rank.")
    lora_alpha: float | None = Field(
        default=None, gt=0, description="Numerator of the scale, lora_alpha / r; r when unset."
    )
    learning_rate: float = Field(default=5e-5, gt=0, description="Peak learning rate.")
    target_modules: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Layers to adapt, by the end of their names; the attention of each text encoder when unset.",
    )

    @model_validator(mode="before")
    @classmethod
    def _forget_the_former_default(cls, values: Any) -> Any:
        """Files from when CLIP alone could learn write its layers out; they are now those of a setting left out."""
        if isinstance(values, dict) and "encoders" not in values and values.get("target_modules") == CLIP_ATTENTION:
            return {name: value for name, value in values.items() if name != "target_modules"}
        return values

    @model_validator(mode="after")
    def _check(self) -> "TextEncoderConfig":
        check_unused(self, "text_encoder", "train_text_encoder")
        return self


class TokensConfig(Section):
    """A word that text encoders learn (textual inversion); [text.md](text.md) shows how it is used."""

    placeholder_token: str | None = Field(
        default=None,
        min_length=2,
        max_length=100,
        pattern=r"^\S+$",
        description="The new word as captions and prompts have it, such as `<toy>`.",
    )
    initializer_token: str | None = Field(
        default=None, min_length=1, description="A word of one token whose embedding the new one starts from."
    )
    encoders: list[str] | None = Field(default=None, min_length=1, description=_ENCODERS)
    num_vectors: int = Field(default=1, ge=1, le=64, description="Embeddings that the word stands for.")
    learning_rate: float = Field(default=5e-4, gt=0, description="Peak learning rate of the embeddings.")
    train_frac: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the steps after which the embeddings stay as they are: pivotal tuning.",
    )

    @model_validator(mode="after")
    def _check(self) -> "TokensConfig":
        check_unused(self, "tokens", "placeholder_token")
        if self.placeholder_token is not None and self.initializer_token is None:
            raise ValueError("tokens.placeholder_token needs tokens.initializer_token, the word that it starts from")
        return self
