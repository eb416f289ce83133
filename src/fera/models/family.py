"""What training must know about the pipelines of one class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fera.models.latents import AS_THEY_ARE, LatentUnits, scaled
from fera.models.pairs import Pairs
from fera.models.pictures import encoded
from fera.models.placement import Placement
from fera.models.sound import Sound
from fera.models.video import Video

Conditions = Mapping[str, Tensor]
EncodePart = Callable[[Any, list[str], torch.device, Conditions], dict[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """How the pipelines of one class turn captions into conditions and call their denoiser.

    Args:
        text_components: names of the pipeline's parts that make the conditions.
        encode: (pipeline, captions, device) to conditions by name, each with captions along its first axis. The empty
            caption is encoded as the pipeline encodes an absent negative prompt. Those of int32 are numbers of things,
            which are not cast to the precision of the denoiser.
        predict: (denoiser, noisy latents (B, C, H, W), timesteps (B,), conditions) to the prediction, shape
            (B, C, H, W).
        packing: latent pixels a side that the pipeline packs into one token, beside the denoiser's own patches.
        clip: names of the text encoders that are CLIP.
        reads: text encoders beside those of `clip` that get captions as they are, to how many tokens of one they read;
            None: as many as `max_sequence_length` of the pipeline says. Empty where a pipeline puts words of its own
            around captions, or counts them its own way, for one of its encoders: what is said of some would mislead.
        encode_part: where several text encoders make conditions apart from each other, names of those that make some of
            them together to (pipeline, captions, device, all conditions) to these, computed anew; the other encoders
            may be gone. Empty where what all of them make is mixed, or where there is one.
        untrained: names of text encoders that cannot be trained to the reason.
        scale: pixels a latent pixel, where `vae_scale_factor` of the pipeline does not say so.
        resolution: side of the square pictures that the pipeline was made for, in pixels, where neither its denoiser
            nor its default size says so.
        placed: what the denoiser is told of where a picture's pixels lie in it, by name of the condition; None where it
            is told nothing of the kind.
        units: an autoencoder to how its latents become the denoiser's, as the pipeline undoes it.
        latents: (autoencoder, pictures (B, 3, H, W) in [-1, 1]) to clean latents (B, C, h, w) in the denoiser's units,
            where that is no matter of a shift and a scale a channel; None: the autoencoder's latents and `units`.
        preview: (autoencoder, clean latents as `latents` gives them) to the pictures (B, 3, H, W) in [-1, 1] that they
            are of, or to the first frames of clips; None where `units` says all, or where nothing is shown of a drawing
            before it is done.
        ranges: for pipelines with several denoisers, each for noise levels of its own, their names in the pipeline to
            those levels, from 0 (clean) to 1 (pure noise); empty for the others.
        video: what a base of videos is made for; None of one of pictures. `latents` is then given clips, and `predict`
            latents with their frames as channels.
        sound: what a base of sound is made for; None of the others. `latents` is then given samples, and latents are
            (B, C, L) everywhere.
        encodes_alone: whether captions are encoded one at a time: their conditions differ in length.
        pairs: how it is given source pictures; None where it takes none.
        guidance: the argument of the pipeline that sets the strength of guidance; None where it has none.
        call: further arguments with which the pipeline draws what it is told: no guidance, no table of sizes.
        no_checkpointing: why activations of its denoiser cannot be computed again in the backward pass; empty where
            they can.
        refusal: why this pipeline cannot be trained; empty where it can.
    """

    text_components: tuple[str, ...]
    encode: Callable[[Any, list[str], torch.device], dict[str, Tensor]]
    predict: Callable[[nn.Module, Tensor, Tensor, Conditions], Tensor]
    packing: int = 1
    scale: int | None = None
    resolution: int | None = None
    clip: tuple[str, ...] = ()
    reads: Mapping[str, int | None] = field(default_factory=dict)
    encode_part: Mapping[tuple[str, ...], EncodePart] = field(default_factory=dict)
    untrained: Mapping[str, str] = field(default_factory=dict)
    placed: Callable[[Placement], dict[str, tuple[float, ...]]] | None = None
    units: Callable[[Any], LatentUnits] = scaled
    latents: Callable[[Any, Tensor], Tensor] | None = None
    preview: Callable[[Any, Tensor], Tensor] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    video: Video | None = None
    sound: Sound | None = None
    encodes_alone: bool = False
    pairs: Pairs | None = None
    guidance: str | None = "guidance_scale"
    call: Mapping[str, Any] = field(default_factory=dict)
    no_checkpointing: str = ""
    refusal: str = ""

    @staticmethod
    def cast(conditions: Conditions, dtype: torch.dtype) -> Conditions:
        """Conditions in a precision, but for numbers of things."""
        return {name: value if value.dtype == torch.int32 else value.to(dtype) for name, value in conditions.items()}

    def encode_pictures(self, vae: Any, pixels: Tensor) -> Tensor:
        """What the cache holds of pictures: latents to which `units_of` the autoencoder still apply.

        Args:
            vae: the pipeline's autoencoder.
            pixels: shape (B, 3, H, W), or clips of shape (B, 3, F, H, W) where `video` is set, or samples of shape
                (B, channels, N) where `sound` is; in [-1, 1], on its device.

        Returns:
            Shape (B, C, h, w), float32; frames count as channels. Of sounds (B, C, L).
        """
        return (encoded if self.latents is None else self.latents)(vae, pixels).float()

    def units_of(self, vae: Any) -> LatentUnits:
        """How what `encode_pictures` gives becomes the denoiser's."""
        return self.units(vae) if self.latents is None else AS_THEY_ARE

    def source_units_of(self, vae: Any) -> LatentUnits:
        """How what `encode_pictures` gives of a source becomes what the denoiser is told."""
        own = self.pairs.units if self.pairs is not None else None
        return self.units_of(vae) if own is None else own(vae)

    def clean_latents(self, vae: Any, pixels: Tensor) -> Tensor:
        """Clean latents of pictures in the denoiser's units, shape (B, C, h, w), float32; arguments as above."""
        return self.units_of(vae).of(self.encode_pictures(vae, pixels))
