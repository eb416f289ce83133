"""Letting go of what encodes pictures and captions, once all is encoded."""

import gc
from collections.abc import Sequence
from typing import Any

import torch

from fera.models.families import Family


def free_encoders(pipe: Any, family: Family, kept: Sequence[str] = ()) -> None:
    """Drop the autoencoder and the text encoders: training reads the cache.

    Args:
        pipe: the pipeline.
        family: its family.
        kept: names of parts that stay: text encoders train.
    """
    eyes = family.pairs.eyes if family.pairs is not None else ()
    for name in ("vae", *family.text_components, *eyes):
        if name not in kept:
            setattr(pipe, name, None)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
