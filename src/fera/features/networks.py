"""Networks whose features distances between pictures rest on, other than the judge."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fera.errors import FeraError, reason_of
from fera.features.pixels import resized

_BATCH = 32
# Of the pictures that CLIP was trained on, by channel, in [0, 1].
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# The same of ImageNet, and the side in patches of the pictures that DINOv2 is used on.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_DINOV2_PATCHES = 16


class InceptionFeatures:
    """The network of the usual FID: Inception v3 on ImageNet, its last pooling, 2048 wide.

    Raises:
        FeraError: torch-fidelity, which brings it, is not installed, or its weights cannot be had.
    """

    name = "Inception v3 (torch-fidelity)"

    def __init__(self) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        try:
            self._network = FrechetInceptionDistance(feature=2048).inception.eval()
        except ModuleNotFoundError as error:
            raise FeraError(
                "`features` inception needs torch-fidelity: pip install torch-fidelity; or take `features` judge"
            ) from error
        except (OSError, RuntimeError) as error:  # no network, or a download cut short
            raise FeraError(
                f"`features` inception: the weights cannot be downloaded ({error}); or take `features` judge"
            ) from error

    @torch.no_grad()
    def features(self, pictures: Iterable[Tensor]) -> Tensor:
        """Features of pictures, in chunks (n, 3, H, W) in [-1, 1]; shape (N, 2048), float32."""
        found = []
        for batch in (batch for chunk in pictures for batch in chunk.split(_BATCH)):
            found.append(self._network(((batch + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)).float())
        return torch.cat(found)


@dataclass(frozen=True)
class ClipFeatures:
    """CLIP's embeddings of pictures and texts.

    Args:
        model: `transformers.CLIPModel` in evaluation mode.
        tokenizer: the tokenizer of the model.
        name: for records.
    """

    model: Any
    tokenizer: Any
    name: str

    @torch.no_grad()
    def features(self, pictures: Iterable[Tensor]) -> Tensor:
        """Embeddings of pictures, in chunks (n, 3, H, W) in [-1, 1]; shape (N, D), of length 1."""
        side = self.model.config.vision_config.image_size
        embeddings = [
            self.model.visual_projection(self.model.vision_model(pixel_values=batch).pooler_output)
            for batch in _batches(pictures, side, _CLIP_MEAN, _CLIP_STD)
        ]
        return functional.normalize(torch.cat(embeddings).float(), dim=1)

    @torch.no_grad()
    def text_score(self, features: Tensor, prompts: list[str]) -> float:
        """Mean cosine of pictures and their prompts, times 100.

        Args:
            features: the features of the pictures, shape (N, D), of length 1.
            prompts: the prompts of the pictures.

        Source:
            Hessel et al., CLIPScore, arXiv 2104.08718, without its factor of 2.5 and its cut at 0.
        """
        embeddings = []
        for start in range(0, len(prompts), _BATCH):
            limit = self.model.config.text_config.max_position_embeddings
            tokens = self.tokenizer(
                prompts[start : start + _BATCH], padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
            pooled = self.model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
            embeddings.append(self.model.text_projection(pooled))
        texts = functional.normalize(torch.cat(embeddings).float(), dim=1)
        return float((features * texts).sum(dim=1).mean() * 100)


@dataclass(frozen=True)
class Dinov2Features:
    """DINOv2's embeddings of pictures: its first token, as PEFT's benchmark of image generation takes it.

    Args:
        model: `transformers.Dinov2Model` in evaluation mode.
        name: for records.

    Source:
        Oquab et al., arXiv 2304.07193.
    """

    model: Any
    name: str

    @torch.no_grad()
    def features(self, pictures: Iterable[Tensor]) -> Tensor:
        """Embeddings of pictures, in chunks (n, 3, H, W) in [-1, 1]; shape (N, D), of length 1.

        Pictures are brought to 16 x 16 patches whole: nothing is cropped.
        """
        side = _DINOV2_PATCHES * self.model.config.patch_size
        embeddings = [
            self.model(pixel_values=batch).last_hidden_state[:, 0]
            for batch in _batches(pictures, side, _IMAGENET_MEAN, _IMAGENET_STD)
        ]
        return functional.normalize(torch.cat(embeddings).float(), dim=1)


def load_clip(model: str) -> ClipFeatures:
    """Load a CLIP model.

    Args:
        model: folder or Hub id.

    Raises:
        FeraError: it cannot be had.
    """
    from transformers import CLIPModel, CLIPTokenizer

    with _having("clip", model):
        return ClipFeatures(
            CLIPModel.from_pretrained(model).eval(), CLIPTokenizer.from_pretrained(model), f"CLIP {model}"
        )


def load_dinov2(model: str) -> Dinov2Features:
    """Load a DINOv2 model.

    Args:
        model: folder or Hub id.

    Raises:
        FeraError: it cannot be had, or is a model of another kind.
    """
    from transformers import AutoConfig, Dinov2Model

    with _having("dinov2", model):
        config = AutoConfig.from_pretrained(model)
        if config.model_type != "dinov2":
            raise ValueError(f"it is a model of type {config.model_type}")
        return Dinov2Features(Dinov2Model.from_pretrained(model).eval(), f"DINOv2 {model}")


@contextmanager
def _having(features: str, model: str) -> Iterator[None]:
    """Say in one sentence that a model cannot be had."""
    try:
        yield
    except Exception as error:  # transformers and the Hub's client raise many kinds
        where = "" if Path(model).exists() else " (no such folder; tried as a Hub id)"
        reason = reason_of(error)
        raise FeraError(
            f"`features` {features}: cannot load {model!r}{where}: {reason}; or take `features` judge"
        ) from error


def _batches(
    pictures: Iterable[Tensor], side: int, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> Iterator[Tensor]:
    """Pictures of chunks (n, 3, H, W) in [-1, 1] as networks take them: of one side, less a mean, over a deviation."""
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, deviation))
    for batch in (batch for chunk in pictures for batch in chunk.split(_BATCH)):
        yield ((resized(batch, side) + 1) / 2 - shift) / scale
