"""Small training runs on tiny pipelines."""

import json
from pathlib import Path

from PIL import Image

from fera.training import TrainConfig

# Width and height to how many pictures: three shapes, none of which fills its last batch of two.
MIXED = {(16, 32): 3, (32, 16): 1, (20, 20): 3}


def run_config(base: Path, pictures: Path, output: Path, **sections: dict) -> TrainConfig:
    """A run of six steps of batch size 2; sections override it."""
    settings: dict = {
        "base": str(base),
        "output_dir": output,
        "data": {"train_data_dir": pictures, "cache_dir": output.parent / "cache"},
        "train": {"steps": 6, "batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1, "consistency_weight": 0.0}
        | {"report_to": "none"},
        "validation": {"loss_samples": 8},
    }
    for section, values in sections.items():
        settings[section] = settings[section] | values if section in settings else values
    return TrainConfig.model_validate(settings)


def mixed_folder(folder: Path) -> Path:
    """A folder of pictures of the sizes in `MIXED`, each unlike the others."""
    folder.mkdir()
    for (width, height), count in MIXED.items():
        for number in range(count):
            image = Image.linear_gradient("L").resize((width, height)).rotate(90 * number).convert("RGB")
            image.putpixel((number, 0), (255, 0, 0))
            image.save(folder / f"{width}x{height}-{number}.png")
            (folder / f"{width}x{height}-{number}.txt").write_text("a red rocket")
    return folder


def log_of(config: TrainConfig, key: str) -> list:
    """Values of a key of log.jsonl."""
    lines = (config.output_dir / "log.jsonl").read_text().splitlines()
    return [record[key] for record in map(json.loads, lines) if key in record]
