"""What the tests of evaluations share: a judge that needs no training, and small settings."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from fera.evaluation import EvaluationSettings
from fera.features.judge_network import FEATURES, JudgeNetwork

STYLES = ("plain", "fancy")


def quick_settings(**overrides: object) -> EvaluationSettings:
    """Settings for tiny pipelines: a second or two."""
    settings: dict = {"loss_samples": 8, "num_inference_steps": 2, "batch_size": 3, "guidance_scale": 2.0}
    return EvaluationSettings(**settings | overrides)


def write_judge(path: Path, *, style: int = 0, reach: float = 1e6, sureness: float = 5.0) -> Path:
    """A judge with random weights that takes every picture for one style, and tells pictures apart at random.

    Args:
        path: the file.
        style: what it takes pictures for.
        reach: how far a picture may lie from what it knows.
        sureness: difference of the logits.
    """
    torch.manual_seed(0)
    network = JudgeNetwork(len(STYLES)).eval()
    torch.nn.init.zeros_(network.style.weight)
    network.style.bias.data = sureness * torch.nn.functional.one_hot(torch.tensor(style), len(STYLES)).float()
    tensors = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    described = {
        "feature_mean": torch.zeros(len(STYLES), FEATURES),
        "feature_std": torch.ones(len(STYLES), FEATURES),
        "feature_reach": torch.full((len(STYLES),), reach),
    }
    save_file(tensors | described, path, {"format": "fera-judge-1", "styles": json.dumps(STYLES)})
    return path
