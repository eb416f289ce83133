"""Models on this machine that write captions, found without opening one."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

# `model_type` of transformers' models that describe a picture: unasked, asked by a chat template, asked by a task.
PLAIN = frozenset({"blip", "git"})
CHATTING = frozenset(
    {
        *("llava", "llava_next", "llava_onevision", "idefics3", "smolvlm", "internvl", "gemma3", "mistral3"),
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    }
)
TASKED = frozenset({"florence2"})
KINDS = PLAIN | CHATTING | TASKED
_CONFIG_BYTES = 2**20


@dataclass(frozen=True)
class CaptionModel:
    """A model.

    Args:
        name: as the Hub calls it, or its folder.
        path: its folder.
        kind: its `model_type`.
    """

    name: str
    path: str
    kind: str

    @property
    def is_asked(self) -> bool:
        """Whether it takes a question."""
        return self.kind not in PLAIN


def find_models() -> list[CaptionModel]:
    """Models in the cache of the Hugging Face Hub whose weights are safetensors."""
    found = []
    for folder in sorted(_hub().glob("models--*")):
        for snapshot in sorted(folder.glob("snapshots/*"))[-1:]:
            if (kind := kind_of(snapshot)) is not None:
                found.append(CaptionModel(folder.name.removeprefix("models--").replace("--", "/"), str(snapshot), kind))
    return found


def kind_of(folder: Path) -> str | None:
    """The `model_type` of a folder that holds a model which writes captions; None of any other."""
    try:
        if (folder / "config.json").stat().st_size > _CONFIG_BYTES or not any(folder.glob("*.safetensors")):
            return None
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return kind if isinstance(kind, str) and kind in KINDS else None


def _hub() -> Path:
    """The Hub's cache, as huggingface_hub finds it, without importing it."""
    if own := os.environ.get("HF_HUB_CACHE"):
        return Path(own).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"
