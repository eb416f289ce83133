"""The soft prompt of a run: what it starts from, its parameter group, and the phase in which it learns alone."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from fera.config import OptimizationConfig
from fera.data.cache.encoded import EncodedSet
from fera.models.soft_prompts import STATES, text_states
from fera.training.step.randomness import mixed_seed
from fera.tuner.model import gate_of


def soft_prompt_of(denoiser: nn.Module) -> list[nn.Parameter]:
    """The vectors of a denoiser's soft prompt that train, shape (V, D); none where there is no soft prompt."""
    gate = gate_of(denoiser)
    held: Iterable[nn.Parameter] = gate.soft_prompt.parameters() if gate is not None else ()
    return [vectors for vectors in held if vectors.requires_grad]


def soft_prompt_groups(settings: OptimizationConfig, denoiser: nn.Module) -> list[dict[str, Any]]:
    """Its parameter group, as optimizers take groups. Decay would pull it to nothing that a text says."""
    vectors = soft_prompt_of(denoiser)
    rate = settings.soft_prompt_learning_rate
    return [{"name": "soft_prompt", "params": vectors, "lr": rate, "weight_decay": 0.0}] if vectors else []


@torch.no_grad()
def start_from_captions(denoiser: nn.Module, training: EncodedSet, seed: int) -> None:
    """Start a soft prompt from states that captions of the training examples have, drawn at random.

    Nothing happens where there is no soft prompt, or where captions are not encoded before training.

    Args:
        denoiser: it holds the fresh adapter.
        training: encoded training examples.
        seed: of the run.

    Source:
        Lester et al., arXiv 2104.08691, who start soft prompts from embeddings of the vocabulary.
    """
    if not training.texts:
        return
    generator = torch.Generator().manual_seed(mixed_seed(seed, 4))
    for vectors in soft_prompt_of(denoiser):
        for place in range(len(vectors)):
            row = int(torch.randint(len(training), (), generator=generator))
            conditions = training.batch([row]).conditions
            states = conditions[STATES][0]
            name = text_states(denoiser).mask
            if name is not None and (mask := conditions.get(name)) is not None:
                states = states[mask[0].bool()]
            vectors[place] = states[int(torch.randint(len(states), (), generator=generator))].to(vectors)


class SoftPromptPhase:
    """In the first steps a soft prompt learns alone, then all else does.

    What does not learn loses its gradient before the optimizer sees it: its moments stay at nothing, weights too.

    Args:
        settings: of the optimization.
        denoiser: it holds the adapter.
        trained: all parameters that the optimizer holds.
    """

    def __init__(self, settings: OptimizationConfig, denoiser: nn.Module, trained: Sequence[nn.Parameter]) -> None:
        self._vectors = soft_prompt_of(denoiser)
        own = {id(vectors) for vectors in self._vectors}
        self._others = [parameter for parameter in trained if id(parameter) not in own]
        self._end = settings.soft_prompt_then_freeze * settings.steps

    def hold(self, step: int) -> None:
        """Drop the gradients of what does not learn; `step` steps were taken."""
        for parameter in self._others if step < self._end else self._vectors:
            parameter.grad = None


def phase_of(
    settings: OptimizationConfig, denoiser: nn.Module, trained: Sequence[nn.Parameter]
) -> SoftPromptPhase | None:
    """The phase of a run whose soft prompt has one; arguments as for `SoftPromptPhase`."""
    has_phase = bool(soft_prompt_of(denoiser)) and settings.soft_prompt_then_freeze > 0
    return SoftPromptPhase(settings, denoiser, trained) if has_phase else None
