"""Is it still the thing that was asked for? A picture's place among the real pictures of many concepts."""

import json
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fera.demo import STYLES
from fera.features.judge import Judge
from fera.features.judge_network import SIDE
from fera.features.pixels import PixelSet


@dataclass(frozen=True)
class Gallery:
    """Real pictures to find the right one among.

    Args:
        captions: distinct, one a row.
        embeddings: the embeddings of each caption's pictures, averaged; shape (N, D), of length 1.
    """

    captions: tuple[str, ...]
    embeddings: Tensor

    def ranks(self, embeddings: Tensor, captions: Sequence[str]) -> list[int | None]:
        """Place of the right caption by cosine similarity, for each picture.

        Args:
            embeddings: the embeddings of the pictures, shape (M, D).
            captions: the right one of each.

        Returns:
            1 is best; None where the gallery lacks the caption.
        """
        similarities = embeddings @ self.embeddings.T
        ranks: list[int | None] = []
        for row, caption in enumerate(captions):
            if caption not in self.captions:
                ranks.append(None)
                continue
            right = similarities[row, self.captions.index(caption)]
            ranks.append(1 + int((similarities[row] > right).sum()))
        return ranks


def gallery_of(captions: Sequence[str], embeddings: Tensor) -> Gallery:
    """A gallery of pictures; those of one caption become one entry.

    Args:
        captions: the captions of the pictures.
        embeddings: shape (N, D).
    """
    distinct = tuple(dict.fromkeys(captions))
    sums = torch.zeros(len(distinct), embeddings.shape[1])
    sums.index_add_(0, torch.tensor([distinct.index(caption) for caption in captions]), embeddings)
    return Gallery(distinct, functional.normalize(sums, dim=1))


def other_styles_gallery(judge: Judge, captions: Collection[str], style: str) -> Gallery | None:
    """The bundled styles' pictures of some captions, but for one style's own.

    Args:
        judge: embeds them.
        captions: wanted.
        style: to leave out.

    Returns:
        A gallery of the captions that the other styles draw; None where they draw none.
    """
    found: list[str] = []
    images: list[Image.Image | Path] = []
    for name in STYLES:
        if name != style:
            for caption, image in _bundled(name, captions):
                found.append(caption)
                images.append(image)
    if not found:
        return None
    return gallery_of(found, judge.look(PixelSet(images, (SIDE, SIDE))).embeddings)


def _bundled(style: str, captions: Collection[str]) -> Iterator[tuple[str, Image.Image]]:
    """A bundled style's pictures of some captions, from its archive: unpacking thousands of files would take longer."""
    with zipfile.ZipFile(Path(str(files("fera.demo"))) / "styles" / f"{style}.zip") as archive:
        for metadata in sorted(name for name in archive.namelist() if name.endswith("/metadata.jsonl")):
            for row in map(json.loads, archive.read(metadata).decode().splitlines()):
                if row["text"] in captions:
                    with archive.open(metadata.replace("metadata.jsonl", row["file_name"])) as file:
                        yield row["text"], Image.open(file).convert("RGB")


def mean_reciprocal(ranks: Sequence[int | None]) -> float | None:
    """Mean of 1 / rank over the ranks that are known; None where none is."""
    known = [1 / rank for rank in ranks if rank is not None]
    return sum(known) / len(known) if known else None


def share_within(ranks: Sequence[int | None], limit: int) -> float | None:
    """Share of the known ranks that are at most a limit; None where none is known."""
    known = [rank <= limit for rank in ranks if rank is not None]
    return sum(known) / len(known) if known else None
