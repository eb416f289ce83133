"""The text encoders of a run: LoRA and a learned token in them, and captions encoded anew at every step.

Their cached embeddings would be those of the base. What others make of a caption stays cached where it is apart.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from diffusers.training_utils import cast_training_params
from torch import Tensor, nn

from fera.adapters.file import open_adapter
from fera.adapters.text.encoders import tokenizer_for
from fera.adapters.text.kinds import target_paths
from fera.adapters.text.lora import add_lora, fill_lora, lora_layers
from fera.adapters.text.tokens import add_token, check_token, learned_tokens
from fera.config import TokensConfig, TrainConfig
from fera.data.example import Example
from fera.errors import FeraError
from fera.models.conditions import together
from fera.models.families import Conditions, Family
from fera.models.prompts import as_read
from fera.training.trained.kinds import ADAPTER_NAME
from fera.training.trained.text_encoders import learning_encoders


class TextTraining:
    """What trains in a pipeline's text encoders. Making one puts it there, fresh.

    Args:
        pipe: the pipeline, with its text encoders.
        family: its family.
        config: the configuration of the run; it trains text.
        device: where to train.

    Raises:
        FeraError: a target module matches nothing.
    """

    def __init__(self, pipe: Any, family: Family, config: TrainConfig, device: torch.device) -> None:
        self._learning = learning_encoders(pipe, family, config)
        self._pipe = pipe
        self._family = family
        self._config = config
        self._device = device
        for part in (getattr(pipe, name) for name in self.needed):
            if isinstance(part, nn.Module):
                part.requires_grad_(False)
                part.eval()
                part.to(device)
        self._encoders: list[Any] = [getattr(pipe, name) for name in self.names]
        torch.manual_seed(config.seed)  # the first weights
        for name, encoder in zip(self.names, self._encoders, strict=True):
            self._add(name, encoder)
        self._loras = [parameter for encoder in self._encoders for parameter in _loras(encoder)]
        self._rows = [row for encoder in self._encoders for row in _rows(encoder)]
        self.at_step(0)

    def _add(self, name: str, encoder: Any) -> None:
        settings, tokens = self._config.text_encoder, self._config.tokens
        if name in self._learning.loras:
            alpha = settings.r if settings.lora_alpha is None else settings.lora_alpha
            targets = target_paths(encoder, settings.target_modules)
            add_lora(encoder, ADAPTER_NAME, settings.r, alpha, targets, inference=False)
            cast_training_params(encoder, torch.float32)
        if self._config.train.gradient_checkpointing:
            encoder.gradient_checkpointing_enable({"use_reentrant": False})
        if name in self._learning.tokens and tokens.placeholder_token is not None:
            start = initial_row(encoder, tokenizer_for(self._pipe, name), tokens)
            rows = start.float().repeat(tokens.num_vectors, 1)
            add_token(self._pipe, name, ADAPTER_NAME, tokens.placeholder_token, rows)

    @property
    def names(self) -> tuple[str, ...]:
        """The text encoders that train."""
        return self._learning.names

    @property
    def needed(self) -> tuple[str, ...]:
        """Names of the pipeline's parts that a step needs."""
        return self._learning.needed

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that trains here, whether or not it still does."""
        return [*self._loras, *self._rows]

    def groups(self, settings: TrainConfig) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer, by name. Decay would pull the token to no word at all."""
        groups: list[dict[str, Any]] = [
            {"name": "text_encoder", "params": self._loras, "lr": settings.text_encoder.learning_rate},
            {"name": "tokens", "params": self._rows, "lr": settings.tokens.learning_rate, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def at_step(self, step: int) -> None:
        """Let the token train, or no more; `step` steps were taken."""
        for row in self._rows:
            row.requires_grad_(step < self._config.tokens.train_frac * self._config.train.steps)

    def encode(self, captions: Sequence[str], cached: Conditions) -> Conditions:
        """What the denoiser is told of captions, with a gradient to what trains here.

        Args:
            captions: the captions of a batch; those that are there several times are encoded once.
            cached: what is kept of them, on the device.
        """
        distinct = list(dict.fromkeys(captions))
        firsts = [captions.index(caption) for caption in distinct]
        known = {name: value[firsts] for name, value in cached.items()}
        encoded = self._encode_alone(distinct, known) if self._family.encodes_alone else self._encode(distinct, known)
        rows = torch.tensor([distinct.index(caption) for caption in captions], device=self._device)
        return {**cached, **{name: value[rows] for name, value in encoded.items()}}

    def _encode(self, captions: list[str], known: Conditions) -> Conditions:
        """What is encoded anew of captions, none of them twice; `known` is what is kept of each."""
        if self._learning.encode_parts is None:
            return self._family.encode(self._pipe, captions, self._device)
        made: dict[str, Tensor] = {}
        for encode_part in self._learning.encode_parts:
            made |= encode_part(self._pipe, captions, self._device, {**known, **made})
        return made

    def _encode_alone(self, captions: list[str], known: Conditions) -> Conditions:
        """One at a time, where captions differ in length."""
        alone = [
            self._encode([caption], {name: value[row : row + 1] for name, value in known.items()})
            for row, caption in enumerate(captions)
        ]
        return together([{name: value[0] for name, value in conditions.items()} for conditions in alone])

    def restore(self, folder: Path) -> None:
        """Read the weights of a folder that `fera.save_adapter` wrote."""
        files = open_adapter(folder).text
        if files is None:
            raise FeraError(f"{folder} holds nothing of the text encoders, but this run trains them")
        for name, encoder in zip(self.names, self._encoders, strict=True):
            if name in files.loras:
                fill_lora(encoder, ADAPTER_NAME, files.lora(name))
            for row in _rows(encoder):
                row.data.copy_(files.rows(name))

    def train(self) -> None:
        """Let gradient checkpointing work, which asks for training mode; nothing else does, which would drop states."""
        for encoder in self._encoders:
            for module in encoder.modules():
                module.training = hasattr(module, "gradient_checkpointing")

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the encoders into evaluation mode for a while."""
        for encoder in self._encoders:
            encoder.eval()
        try:
            yield
        finally:
            self.train()


def check_text_training(pipe: Any, family: Family, config: TrainConfig, examples: Sequence[Example]) -> None:
    """Refuse settings of text encoders and tokens that do not fit the base or the captions, before any work is done.

    Args:
        pipe: the base.
        family: its family.
        config: the configuration of the run.
        examples: to train on.

    Raises:
        FeraError: one does not.
    """
    if not config.trains_text:
        return
    learning = learning_encoders(pipe, family, config)
    for name in learning.loras:
        target_paths(getattr(pipe, name), config.text_encoder.target_modules)
    tokens = config.tokens
    if tokens.placeholder_token is None:
        return
    for name in learning.tokens:
        _check_room(pipe, name, tokens)
    if tokens.num_vectors > 1 and not isinstance(pipe, TextualInversionLoaderMixin):
        raise FeraError(
            f"tokens.num_vectors is {tokens.num_vectors}, but a {type(pipe).__name__} does not write a word out as "
            "several vectors when it draws; use 1"
        )
    if not any(tokens.placeholder_token in example.caption for example in examples):
        raise FeraError(
            f"no caption has tokens.placeholder_token, {tokens.placeholder_token!r}, so nothing would learn it; set "
            "data.trigger_word to it, or write it into data.instance_prompt or the captions"
        )


def _check_room(pipe: Any, name: str, tokens: TokensConfig) -> None:
    """Hold a word against the text encoder that is to learn it, and its tokenizer."""
    word = str(tokens.placeholder_token)
    if word not in as_read(pipe, f"a {word} b"):
        raise FeraError(
            f"tokens.placeholder_token is {word!r}, but a {type(pipe).__name__} removes it from prompts when it cleans "
            "them: choose a word of lower-case letters alone"
        )
    tokenizer = tokenizer_for(pipe, name)
    check_token(tokenizer, word, tokens.num_vectors)
    initial_row(getattr(pipe, name), tokenizer, tokens)
    special = tokenizer.num_special_tokens_to_add()
    if tokens.num_vectors > tokenizer.model_max_length - special:
        raise FeraError(
            f"tokens.num_vectors is {tokens.num_vectors}, but {name} takes {tokenizer.model_max_length} tokens, of "
            f"which {special} are its own"
        )


def initial_row(encoder: Any, tokenizer: Any, tokens: TokensConfig) -> Tensor:
    """Embedding of the word that a token starts from, shape (1, D).

    Raises:
        FeraError: the word is not one token.
    """
    # Behind a space first: some vocabularies tell a word in a sentence from one at its beginning.
    read = [tokenizer.encode(f"{space}{tokens.initializer_token}", add_special_tokens=False) for space in (" ", "")]
    ids = next((ids for ids in read if len(ids) == 1), read[-1])
    if len(ids) != 1:
        pieces = " ".join(tokenizer.convert_ids_to_tokens(ids)) or "nothing"
        raise FeraError(
            f"tokens.initializer_token {tokens.initializer_token!r} is {len(ids)} tokens ({pieces}); use a word that "
            "is a single one"
        )
    row: Tensor = encoder.get_input_embeddings().weight[ids].detach()
    return row


def _loras(encoder: Any) -> list[nn.Parameter]:
    layers = lora_layers(encoder, ADAPTER_NAME).values()
    return [layer.get_parameter(f"{side}.{ADAPTER_NAME}.weight") for layer in layers for side in ("lora_A", "lora_B")]


def _rows(encoder: Any) -> list[nn.Parameter]:
    learned = learned_tokens(encoder)
    return [learned.rows[ADAPTER_NAME]] if learned is not None else []
