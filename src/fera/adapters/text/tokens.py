"""Words that an adapter adds to a tokenizer, and their embeddings: textual inversion.

The base's embeddings and the pipeline's own tokenizer stay as they are. Learned rows stand beside the former in a
module that takes its place; a copy of the latter knows the words, and goes when the last of them does.

Source:
    Gal et al., An Image is Worth One Word, arXiv 2208.01618.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fera.adapters.text.encoders import tokenizer_of, tokenizer_part, with_tokenizer
from fera.errors import FeraError

# Configurations of old CLIP models name this as their last token. Transformers then pools at the highest id of a
# prompt, which is the last token until there are learned ones.
_OLD_END = 2


class LearnedTokens(nn.Module):
    """Embeddings of a text encoder, with learned rows beside those of the base.

    Args:
        embedding: the base's.
        part: the pipeline's tokenizer, which the words are added to copies of, or its processor around that.
    """

    def __init__(self, embedding: Any, part: Any) -> None:
        super().__init__()
        self.embedding = embedding
        self.rows = nn.ParameterDict()
        self.tokens: dict[str, str] = {}
        self.part = part
        self.had_old_end = False

    @property
    def tokenizer(self) -> Any:
        """The base's."""
        return tokenizer_of(self.part)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings, shape (…, D) in the base's dtype, of token ids (…)."""
        place = ids - len(self.tokenizer)
        count = sum(map(len, self.rows.values()))
        is_learned = (place >= 0) & (place < count)  # behind them, some tables have rows that no word has
        known: Tensor = self.embedding(ids.masked_fill(is_learned, 0))
        rows = torch.cat([row.to(known.dtype) for row in self.rows.values()])
        learned = functional.embedding(place.clamp(min=0, max=count - 1), rows)
        if (scale := getattr(self.embedding, "embed_scale", None)) is not None:  # Gemma's
            learned = learned * torch.as_tensor(scale).to(learned)
        return torch.where(is_learned[..., None], learned, known)

    @property
    def weight(self) -> Tensor:
        """The base's rows, for those who ask an embedding for its width, precision or device."""
        weight: Tensor = self.embedding.weight
        return weight

    def words(self, adapter: str) -> list[str]:
        """What a prompt has for each vector of an adapter's token."""
        return words_of(self.tokens[adapter], len(self.rows[adapter]))


def words_of(token: str, num_vectors: int) -> list[str]:
    """Names of a token's vectors, as diffusers' pipelines write them out: `<toy>`, then `<toy>_1` and so on."""
    return [token, *(f"{token}_{index}" for index in range(1, num_vectors))]


def learned_tokens(encoder: Any) -> LearnedTokens | None:
    """The learned tokens of a text encoder."""
    embedding = encoder.get_input_embeddings()
    return embedding if isinstance(embedding, LearnedTokens) else None


def check_token(tokenizer: Any, token: str, num_vectors: int) -> None:
    """Hold a token against the tokenizer that is to learn it.

    Raises:
        FeraError: it is known already, or is not read as one word.
    """
    words = words_of(token, num_vectors)
    if taken := [word for word in words if word in tokenizer.get_vocab()]:
        raise FeraError(
            f"the tokenizer has a token {taken[0]!r} already, of the base or of a loaded adapter; unload that, or "
            "train with another placeholder_token"
        )
    extended = copy.deepcopy(tokenizer)
    extended.add_tokens(words)
    # Capital letters, for one: pipelines would not find the further vectors of such a word.
    if not all(word in extended.tokenize(f"a {word}, too") for word in words):
        raise FeraError(f"the tokenizer does not read {token!r} as one word; use lower case, such as '<toy>'")


def add_token(pipe: Any, name: str, adapter: str, token: str, rows: Tensor) -> nn.Parameter:
    """Teach a word to a text encoder and its tokenizer.

    Args:
        pipe: the pipeline.
        name: the name of the text encoder.
        adapter: that the token belongs to.
        token: the word in prompts.
        rows: its embeddings, shape (V, D).

    Returns:
        The rows as they are in the encoder.

    Raises:
        FeraError: the tokenizer knows the word already.
    """
    encoder = getattr(pipe, name)
    learned = learned_tokens(encoder)
    part = getattr(pipe, tokenizer_part(pipe, name))
    check_token(tokenizer_of(part), token, len(rows))
    if learned is None:
        learned = LearnedTokens(encoder.get_input_embeddings(), part)
        encoder.set_input_embeddings(learned)
        learned.had_old_end = _pool_at(encoder, _OLD_END, learned.tokenizer.eos_token_id)
    weight = learned.embedding.weight
    learned.rows[adapter] = nn.Parameter(rows.detach().to(weight.device).clone(), requires_grad=False)
    learned.tokens[adapter] = token
    _renew_tokenizer(pipe, name, learned)
    return learned.rows[adapter]


def remove_token(pipe: Any, name: str, adapter: str) -> None:
    """Forget an adapter's word; nothing happens where there is none.

    Args:
        pipe: the pipeline.
        name: the name of the text encoder.
        adapter: the adapter.
    """
    encoder = getattr(pipe, name)
    learned = _learned_by(encoder, adapter)
    if learned is None:
        return
    del learned.rows[adapter], learned.tokens[adapter]
    _renew_tokenizer(pipe, name, learned)
    if not learned.tokens:
        encoder.set_input_embeddings(learned.embedding)
        if learned.had_old_end:
            _pool_at(encoder, learned.tokenizer.eos_token_id, _OLD_END)


@torch.no_grad()
def keep_token(pipe: Any, name: str, adapter: str) -> None:
    """Make an adapter's word one of the base's for good, as merging does; nothing happens where there is none.

    Args:
        pipe: the pipeline.
        name: the name of the text encoder.
        adapter: the adapter.
    """
    encoder = getattr(pipe, name)
    learned = _learned_by(encoder, adapter)
    if learned is None:
        return
    rows, first = learned.rows[adapter], len(learned.tokenizer)
    encoder.set_input_embeddings(learned.embedding)
    if first + len(rows) > len(learned.embedding.weight):  # some have rows to spare
        encoder.resize_token_embeddings(first + len(rows), mean_resizing=False)
    learned.embedding = encoder.get_input_embeddings()
    learned.embedding.weight[first : first + len(rows)] = rows.to(learned.embedding.weight.dtype)
    encoder.set_input_embeddings(learned)
    tokenizer = copy.deepcopy(learned.tokenizer)
    tokenizer.add_tokens(learned.words(adapter))
    learned.part = with_tokenizer(learned.part, tokenizer)
    if learned.had_old_end:
        learned.had_old_end = False
        encoder.config.eos_token_id = tokenizer.eos_token_id
    remove_token(pipe, name, adapter)


def _learned_by(encoder: Any, adapter: str) -> LearnedTokens | None:
    """The learned tokens of a text encoder, where an adapter's are among them."""
    learned = learned_tokens(encoder)
    return learned if learned is not None and adapter in learned.tokens else None


def _renew_tokenizer(pipe: Any, name: str, learned: LearnedTokens) -> None:
    part = learned.part
    if learned.tokens:
        tokenizer = copy.deepcopy(learned.tokenizer)
        for adapter in learned.tokens:
            tokenizer.add_tokens(learned.words(adapter))
        part = with_tokenizer(part, tokenizer)
    setattr(pipe, tokenizer_part(pipe, name), part)


def _pool_at(encoder: nn.Module, before: int, after: int) -> bool:
    """Change the token at which prompts are pooled; whether there was anything to change."""
    found = [module for module in encoder.modules() if vars(module).get("eos_token_id") == before]
    for module in found:
        module.eos_token_id = after  # type: ignore[assignment]
    return bool(found)
