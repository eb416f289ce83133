"""The layout of the code: rooms by floors. `test_layout` holds every import against it.

A room is a folder of `src/fera`, or one of its own modules. It imports rooms of lower floors only, and what its floor
names from outside.
"""

# Room to floor. Rooms of one floor do not import each other.
FLOORS: dict[str, int] = {
    "version": 0,
    "errors": 0,
    "format": 0,
    "support": 1,
    "demo": 1,
    "method": 1,
    "models": 1,
    "config": 2,
    "tuner": 2,
    "traces": 2,
    "adapters": 3,
    "registration": 3,
    "": 3,  # fera/__init__.py
    "pipelines": 4,
    "data": 4,
    "generation": 5,
    "export": 6,
    "training": 6,
    "analysis": 7,
    "evaluation": 7,
    "preflight": 7,
    "report": 7,
    "comparison": 8,
    "cli": 9,
}

# Libraries that may be imported on each floor and above it.
LIBRARIES: dict[int, set[str]] = {
    0: set(),
    1: {"torch"},
    2: {"pydantic", "pydantic_core", "peft", "matplotlib"},
    3: {"safetensors", "huggingface_hub", "aenum"},
    4: {
        "accelerate",
        "bitsandbytes",
        "datasets",
        "diffusers",
        "numpy",
        "PIL",
        "pillow_heif",
        "pillow_jxl",
        "transformers",
    },
    5: set(),
    6: {"deepspeed", "packaging", "trackio", "wandb"},
    7: {"jinja2", "markupsafe", "torchmetrics", "torchvision"},
    8: set(),
    9: {"rich"},
}
