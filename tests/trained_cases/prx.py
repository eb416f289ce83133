"""PRX."""

import json
from pathlib import Path

from models import prx

from trained_cases.case import Case


def as_released(folder: Path) -> None:
    """Its text encoder is the half of a model, in a class that diffusers keeps with the pipeline: both must be said."""
    index, config = folder / "model_index.json", folder / "text_encoder" / "config.json"
    parts = json.loads(index.read_text())
    assert parts["text_encoder"] == ["transformers", "T5GemmaEncoder"]
    index.write_text(json.dumps(parts | {"text_encoder": ["prx", "T5GemmaEncoder"]}))
    config.write_text(json.dumps({"model_type": "t5gemma", "encoder": json.loads(config.read_text())}))


CASES = [Case("prx", prx.make_pipeline, repair=as_released)]
