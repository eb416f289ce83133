"""The judge: a small network that knows the emoji styles, and where its knowledge ends."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fera.errors import FeraError
from fera.features.judge_network import SIDE, JudgeNetwork
from fera.features.pixels import resized
from fera.support.files import file_digest

_FORMAT = "fera-judge-1"
_BATCH = 128
_SURE = 0.3  # mean probability of a style from which on a folder may have it; sets that look alike share theirs


@dataclass(frozen=True)
class Look:
    """What the judge sees in N pictures.

    Args:
        features: the features of the trunk, shape (N, 224), float32.
        styles: probabilities, shape (N, S), rows sum to 1.
        embeddings: the embeddings of the concepts, shape (N, 64), of length 1.
    """

    features: Tensor
    styles: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Judge:
    """A trained network with what it knows of its styles.

    Args:
        network: in evaluation mode, on the CPU, float32.
        styles: names of the S styles.
        feature_mean: the feature mean of each style's features, shape (S, 224).
        feature_std: shape (S, 224), above 0.
        feature_reach: distance from a style's mean, in deviations, that the median of its pictures does not exceed;
            shape (S,).
        name: with a hash of the weights, for records.
    """

    network: JudgeNetwork
    styles: tuple[str, ...]
    feature_mean: Tensor
    feature_std: Tensor
    feature_reach: Tensor
    name: str

    @torch.no_grad()
    def look(self, pictures: Iterable[Tensor]) -> Look:
        """Look at pictures.

        Args:
            pictures: in chunks, each of shape (n, 3, H, W), in [-1, 1]; brought to 64x64.
        """
        parts = [self.network(resized(batch, SIDE)) for chunk in pictures for batch in chunk.split(_BATCH)]
        features, logits, embeddings = (torch.cat(part) for part in zip(*parts, strict=True))
        return Look(features, logits.softmax(dim=1), embeddings)

    def style_of(self, real: Look) -> tuple[str | None, str]:
        """Which known style real pictures have.

        Args:
            real: the real of a folder's pictures.

        Returns:
            The style, or None and why: either no style is likely, or the pictures lie farther from it than its own
            pictures do, as photographs would.
        """
        shares = real.styles.mean(dim=0)
        best = int(shares.argmax())
        name = self.styles[best]
        if shares[best] < _SURE:
            return None, f"the judge does not know this style (nearest: {name}, {float(shares[best]):.0%})"
        strangeness = ((real.features - self.feature_mean[best]) / self.feature_std[best]).square().mean(dim=1).sqrt()
        if strangeness.median() > self.feature_reach[best]:
            return None, f"the judge knows emoji only, and these pictures are unlike any (nearest style: {name})"
        return name, ""


def load_judge(path: Path | None = None) -> Judge:
    """Load a judge.

    Args:
        path: its file; the one that comes with fera when left out.

    Raises:
        FeraError: the file is missing, damaged or of another format.
    """
    path = path or Path(__file__).resolve().parent / "judge.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FeraError(f"cannot read the judge's weights {path}: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise FeraError(
            f"{path} holds no judge of format {_FORMAT}: install fera anew, or leave it out for the bundled one"
        )
    styles = tuple(json.loads(metadata["styles"]))
    mean, deviation, reach = (tensors.pop(f"feature_{name}") for name in ("mean", "std", "reach"))
    network = JudgeNetwork(len(styles))
    # Batch normalization counts its batches; nothing reads that.
    network.load_state_dict(tensors, strict=False)
    digest = file_digest(path)[:12]
    return Judge(network.eval(), styles, mean, deviation, reach, name=f"judge {digest}")
