"""The gate of a call and the output of a layer, computed by hand."""

import torch

import fera

BANDS = fera.FrequencyBands()


def gate_by_hand(model, latent, adapter="default"):
    """From the latent and the router's weights as they are."""
    router = model.fera.router[adapter]
    hidden = torch.relu(BANDS.indicator(latent) @ router.hidden.weight.T + router.hidden.bias)
    return torch.softmax((hidden @ router.output.weight.T + router.output.bias) / router.temperature, dim=1)


def by_hand(layer, x, gates):
    """W x + sum_e g_e B_e A_e x, where each row has a gate of its own."""
    experts = gates.shape[1]
    a, b = (half["default"].weight for half in (layer.lora_A, layer.lora_B))
    scale = layer.scaling["default"]
    parts = zip(gates.T, a.chunk(experts), b.chunk(experts, dim=1), strict=True)
    return layer.base_layer(x) + scale * sum(gate[:, None] * (x @ up.T @ down.T) for gate, up, down in parts)
