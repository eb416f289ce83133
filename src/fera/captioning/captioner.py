"""Captions by a model of transformers: for pictures that have none."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fera.captioning.models import CHATTING, KINDS, PLAIN, kind_of
from fera.data.editing import read_folder, write_captions
from fera.data.images import load_image
from fera.data.picture_formats import IMAGE_SUFFIXES
from fera.errors import PROGRAMMING_ERRORS, FeraError, reason_of
from fera.support.progress import SILENT, Listener

PROMPT = "Describe this picture in one sentence."
# Of Florence-2's tasks the one whose answer is as long as a caption should be.
TASK = "<DETAILED_CAPTION>"
# Pictures whose captions are written to disk together.
_TOGETHER = 16

Captioner = Callable[[Image.Image], str]


@dataclass(frozen=True)
class CaptionRequest:
    """A request for captions.

    Args:
        folder: a data folder.
        model: folder of a model that takes a picture and gives text.
        prompt: what it is asked, where it takes a question: by default `PROMPT`, or `TASK` where it is asked by tasks.
        prefix: put before each caption.
        overwrite: caption pictures anew that have a caption.
        max_new_tokens: how long a caption may become, in the model's tokens.
        device: where the model works; the fastest there is when left out.
    """

    folder: Path
    model: Path
    prompt: str | None = None
    prefix: str = ""
    overwrite: bool = False
    max_new_tokens: int = 100
    device: str | None = None


def write_missing_captions(request: CaptionRequest, listener: Listener = SILENT) -> int:
    """Write captions beside pictures, or into their metadata. What is written so far stays when it is interrupted.

    Args:
        request: what to caption, by which model.
        listener: hears how far it is.

    Returns:
        How many were written.

    Raises:
        FeraError: the folder has no pictures or no captions that can be edited, the model cannot be loaded, or a
            caption cannot be written.
    """
    if request.max_new_tokens < 1:
        raise FeraError(f"`max_new_tokens` must be at least 1, got {request.max_new_tokens}")
    held = read_folder(request.folder)
    if not held.can_be_edited:
        raise FeraError(f"{request.folder} is a {held.layout} folder, whose captions are not edited here")
    pictures = [entry for entry in held.entries if entry.image.suffix.lower() in IMAGE_SUFFIXES]
    wanted = [entry for entry in pictures if request.overwrite or not entry.caption]
    listener.say(f"{len(pictures)} pictures, {len(wanted)} to caption")
    if not wanted:
        return 0
    describe = load_captioner(request)
    changes: dict[str, tuple[str, str]] = {}
    done = 0
    for number, entry in enumerate(wanted, start=1):
        try:
            image = load_image(entry.image)
        except ValueError as error:
            listener.say(f"left out: {entry.image} {error}")
        else:
            changes[entry.name] = (entry.caption, " ".join(f"{request.prefix}{describe(image)}".split()))
        if len(changes) == _TOGETHER or number == len(wanted):
            write_captions(read_folder(request.folder), changes)
            done += len(changes)
            changes = {}
        listener.advance("captioning", number, len(wanted))
    return done


def load_captioner(request: CaptionRequest) -> Captioner:
    """Open a model that lies on this machine; nothing is downloaded and no code of it runs.

    Raises:
        FeraError: it is no such model, cannot be loaded, or takes no question and is asked one.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    kind = kind_of(request.model)
    if kind is None:
        raise FeraError(
            f"`model` {request.model} is no folder of a model that writes captions: it needs a config.json of one of "
            f"{', '.join(sorted(KINDS))}, and safetensors"
        )
    if kind in PLAIN and request.prompt is not None:
        raise FeraError(f"{request.model} is a {kind}, which describes a picture unasked: leave `prompt` out")
    device = torch.device(request.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = AutoProcessor.from_pretrained(request.model, **own)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            request.model, dtype=dtype, use_safetensors=True, **own
        )
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # transformers raises kinds of its own
        raise FeraError(f"cannot load the model {request.model}: {reason_of(error)}") from error
    if kind in CHATTING and not getattr(processor, "chat_template", None):
        raise FeraError(f"{request.model} has no chat template to be asked by: download it whole, or choose another")
    model: Any = loaded.to(device).eval()

    @torch.no_grad()
    def caption(image: Image.Image) -> str:
        try:
            inputs = _inputs(processor, kind, image, request.prompt).to(device)
        except ValueError as error:  # Florence-2: a task that there is not
            raise FeraError(f"{request.model} does not take {request.prompt!r}: {reason_of(error)}") from error
        inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        tokens = model.generate(**inputs, max_new_tokens=request.max_new_tokens, do_sample=False)
        asked = inputs.get("input_ids")
        if asked is not None and tokens.shape[1] > asked.shape[1] and torch.equal(tokens[:, : asked.shape[1]], asked):
            tokens = tokens[:, asked.shape[1] :]  # it repeats what it was asked
        return str(processor.batch_decode(tokens, skip_special_tokens=True)[0]).strip()

    return caption


def _inputs(processor: Any, kind: str, image: Image.Image, prompt: str | None) -> Any:
    """What a model of a kind is given."""
    if kind in PLAIN:
        return processor(images=image, return_tensors="pt")
    if kind not in CHATTING:
        return processor(images=image, text=prompt or TASK, return_tensors="pt")
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt or PROMPT}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
