"""Small studies, and results made up for them."""

from fera.comparison.results import Result, Samples
from fera.comparison.study import parse_study

STUDY = {
    "name": "tiny",
    "styles": ["twemoji", "openmoji"],
    "seeds": [0, 1],
    "methods": {
        "ref": {
            "label": "LoRA",
            "adapter": {"plain": {"peft_type": "LORA", "r": 6}},
            "train": {"consistency_weight": 0},
        },
        "new": {"adapter": {"r": 2}, "train": {"consistency_weight": 0}},
    },
}


def make_study(**changes):
    """A study of two methods, styles and seeds; keywords replace keys."""
    return parse_study(STUDY | changes, "study.toml")


def make_result(method, style, seed, losses, rate=None, **changes):
    """A result with these losses, half of each in either of two bands."""
    values = {
        "method": method,
        "style": style,
        "seed": seed,
        "rate": rate,
        "settings": {"train.learning_rate": 1e-3},
        "fingerprint": "f",
        "code": {"fera": "0", "commit": None, "changed": None},
        "versions": {},
        "hardware": {"cpu": "c", "device": "cpu"},
        "parameters": 100,
        "router_parameters": 0,
        "adapter_bytes": 1000,
        "seconds": 1.0,
        "seconds_per_training_step": 0.1,
        "seconds_per_generation_step": None,
        "peak_memory_bytes": None,
        "validation_loss": None,
        "gates": None,
        "samples": Samples(
            images=[f"{number}.png" for number in range(len(losses))],
            positions=[(number + 0.5) / len(losses) for number in range(len(losses))],
            losses=list(losses),
            bands=[[loss / 2, loss / 2] for loss in losses],
        ),
        "metrics": {"fid": 1.0, "sliced_wasserstein": {"16": 1.0, "32": 3.0}, "folder": "/somewhere"},
    }
    return Result(**values | changes)
