"""How large the experts' weight updates are, and how far they differ."""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models.components import Target, denoisers
from fera.tuner import FeraConfig
from fera.tuner.model import adapter_configs


@dataclass(frozen=True)
class ExpertUpdates:
    r"""How large the experts' weight updates are, and how alike.

    The update of expert e in a layer is :math:`\Delta_e = s\,B_e A_e`. Layers of one kind are taken together, as one
    long vector an expert.

    Args:
        layers: how many layers there are of each kind; the kind is the end of a layer's path: "to_q", "to_out.0".
        norms: by kind, and "all" for all of them: Frobenius norm of each expert's update, shape (E,), float64.
        cosines: likewise: cosine similarity between experts' updates, shape (E, E), float64; 0 where one is zero.
    """

    layers: dict[str, int]
    norms: dict[str, Tensor]
    cosines: dict[str, Tensor]


def expert_updates(target: Target, *, adapter_name: str = "default") -> ExpertUpdates | None:
    """Compare the weight updates of an adapter's experts.

    Args:
        target: a diffusers pipeline, a denoiser or a PeftModel.
        adapter_name: the adapter.

    Returns:
        The comparison; None where the experts are no LoRAs, whose updates have no common form.

    Raises:
        FeraError: there is no such routed adapter.
    """
    grams: dict[str, list[Tensor]] = {}
    found = None
    for denoiser in denoisers(target).values():
        config = adapter_configs(denoiser).get(adapter_name)
        if not isinstance(config, FeraConfig):
            continue
        found = config
        for path, module in denoiser.named_modules():
            if config.expert is None and isinstance(module, LoraLayer) and adapter_name in module.lora_A:
                grams.setdefault(_kind(path), []).append(_gram(module, adapter_name, config))
    if found is None:
        raise FeraError(f"no FeRA adapter {adapter_name!r} whose experts could be compared")
    if not grams:
        return None
    sums = {kind: torch.stack(parts).sum(dim=0) for kind, parts in grams.items()}
    sums["all"] = torch.stack(list(sums.values())).sum(dim=0)
    return ExpertUpdates(
        {kind: len(parts) for kind, parts in grams.items()},
        {kind: gram.diagonal().clamp_min(0).sqrt() for kind, gram in sums.items()},
        {kind: _cosines(gram) for kind, gram in sums.items()},
    )


@torch.no_grad()
def _gram(layer: Any, adapter: str, config: FeraConfig) -> Tensor:
    r"""Inner products between the experts' updates, shape (E, E), float64.

    :math:`\langle B_e A_e, B_f A_f \rangle` is the sum of :math:`(B_e^T B_f) \odot (A_e A_f^T)`: no update is formed.
    """
    down = layer.lora_A[adapter].weight.double().flatten(1).cpu()
    up = layer.lora_B[adapter].weight.double().flatten(1).cpu()
    products = (up.T @ up) * (down @ down.T) * float(layer.scaling[adapter]) ** 2
    # A layer may have ranks of its own, which are alike for all experts.
    ranks = torch.tensor(config.ranks or [len(down) // config.num_experts] * config.num_experts)
    belongs = nn.functional.one_hot(torch.arange(len(ranks)).repeat_interleave(ranks)).to(products)
    return belongs.T @ products @ belongs


def _cosines(gram: Tensor) -> Tensor:
    norms = gram.diagonal().clamp_min(0).sqrt()
    sizes = norms[:, None] * norms[None]
    return torch.where(sizes > 0, gram / sizes.clamp_min(1e-300), 0.0)


def _kind(path: str) -> str:
    """The end of a layer's path; a bare index says nothing without what it is an index of."""
    parts = path.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1]
