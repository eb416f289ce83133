"""The pictures and captions of a run, and its validation prompts, encoded into its cache."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from fera.config import TrainConfig
from fera.data.cache.encoded import EncodedSet
from fera.data.cache.encoder import Encoder
from fera.data.cache.share import ALONE, Share
from fera.data.captions import caption_variants
from fera.data.example import repeat
from fera.pipelines.memory import USABLE, device_memory
from fera.support.progress import Listener
from fera.training.previewing import Previews
from fera.training.start.class_pictures import mixed
from fera.training.start.kept_prompts import keep_prompts
from fera.training.start.opening import Sources, given_entries
from fera.training.trained.text_encoders import learning_encoders


class Encoded(NamedTuple):
    """What a run trains on.

    Args:
        training: training examples, as often as an epoch sees them, class pictures among them.
        held_out: validation examples; None where there are none.
        keeps_prompts: whether the pipeline answers validation prompts from the cache from now on.
    """

    training: EncodedSet
    held_out: EncodedSet | None
    keeps_prompts: bool


def encode(
    sources: Sources,
    config: TrainConfig,
    device: torch.device,
    listener: Listener,
    *,
    draws: bool = False,
    share: Share = ALONE,
) -> Encoded:
    """Encode training and validation examples into the run's cache.

    Args:
        sources: the base and the pictures.
        config: the configuration of the run.
        device: where to encode.
        listener: hears of progress.
        draws: whether validation prompts will be drawn: they are encoded too, if their pipeline can do with that.
        share: which part of what is missing is this process's.
    """
    text_device = _text_device(sources, device, listener)
    encoder = Encoder(
        pipe=sources.pipe,
        parts=sources.base,
        text_device=text_device,
        family=sources.family,
        folder=cache_folder(config),
        device=device,
        buckets=sources.buckets,
        center_crop=config.data.center_crop,
        random_flip=config.data.random_flip,
        seed=config.seed,
        progress=listener.advance,
        mask_min_value=config.data.mask_min_value,
        with_texts=_keeps_texts(sources, config),
        share=share,
        say=listener.say,
    )
    examples = mixed(repeat(sources.training), repeat(sources.class_examples))

    is_kept = False

    def keep(key: list[Any]) -> None:
        nonlocal is_kept
        given = given_entries(sources.family, sources.held_out)
        previews = Previews(config, sources.family, sources.resolution, sources.bucket_step, given)
        is_kept = keep_prompts(sources.base, sources.family, previews, encoder.folder, key, text_device)

    # A pipeline without a denoiser stops where it would draw.
    draws = draws and bool(config.validation.prompts)
    may_keep = draws and not config.trains_text and sources.name in sources.base.waiting
    # Held-out captions stay in one order: their loss compares between steps and runs.
    training, held_out = encoder.encode_sets(
        [
            (examples, lambda caption: caption_variants(caption, config.data, config.seed)),
            (sources.held_out, encoder.captions),
        ],
        after_captions=keep if may_keep else None,
    )
    return Encoded(training, held_out if sources.held_out else None, is_kept)


def cache_folder(config: TrainConfig) -> Path:
    """Where the encoded pictures and captions of a run are."""
    return config.data.cache_dir or config.output_dir / "cache"


def _keeps_texts(sources: Sources, config: TrainConfig) -> bool:
    """Whether what captions become, or a part of it, is the same at every step."""
    if not config.trains_text:
        return True
    return learning_encoders(sources.pipe, sources.family, config).encode_parts is not None


def _text_device(sources: Sources, device: torch.device, listener: Listener) -> torch.device:
    """Where text encoders compute: the CPU where they are larger than the device."""
    parts = [getattr(sources.pipe, name) for name in sources.family.text_components]
    size = sum(weight.nbytes for part in parts if isinstance(part, nn.Module) for weight in part.parameters())
    total = device_memory(device)
    if total is None or size <= USABLE * total:
        return device
    listener.say(
        f"the text encoders take {size / 1e9:.1f} GB and {device} has {total / 1e9:.1f}: they encode on the CPU"
    )
    return torch.device("cpu")
