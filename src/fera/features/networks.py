"""Networks whose features FID, KID and diversity rest on, other than the judge."""

from collections.abc import Iterable
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
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (_CLIP_MEAN, _CLIP_STD))
        side = self.model.config.vision_config.image_size
        embeddings = []
        for batch in (batch for chunk in pictures for batch in chunk.split(_BATCH)):
            scaled = ((resized(batch, side) + 1) / 2 - mean) / deviation
            embeddings.append(self.model.visual_projection(self.model.vision_model(pixel_values=scaled).pooler_output))
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


def load_clip(model: str) -> ClipFeatures:
    """Load a CLIP model.

    Args:
        model: folder or Hub id.

    Raises:
        FeraError: it cannot be had.
    """
    from transformers import CLIPModel, CLIPTokenizer

    try:
        network = CLIPModel.from_pretrained(model).eval()
        tokenizer = CLIPTokenizer.from_pretrained(model)
    except Exception as error:  # transformers and the Hub's client raise many kinds
        where = "" if Path(model).exists() else " (no such folder; tried as a Hub id)"
        reason = reason_of(error)
        raise FeraError(f"`features` clip: cannot load {model!r}{where}: {reason}; or take `features` judge") from error
    return ClipFeatures(network, tokenizer, f"CLIP {model}")
