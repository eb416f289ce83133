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
    "method": 2,
    "models": 2,
    "config": 3,
    "tuner": 3,
    "domains": 3,
    "traces": 3,
    "adapters": 4,
    "registration": 4,
    "": 4,  # fera/__init__.py
    "pipelines": 5,
    "data": 5,
    "features": 6,
    "generation": 6,
    "export": 7,
    "training": 7,
    "analysis": 8,
    "captioning": 8,
    "evaluation": 8,
    "preflight": 8,
    "report": 8,
    "comparison": 9,
    "web": 9,
    "cli": 10,
    "comfyui": 10,
}

# Libraries that may be imported on each floor and above it; the standard library everywhere.
LIBRARIES: dict[int, set[str]] = {
    1: {"torch"},
    3: {"matplotlib", "peft", "pydantic", "pydantic_core", "safetensors"},
    4: {"aenum", "huggingface_hub"},
    5: {"PIL", "accelerate", "av", "bitsandbytes", "datasets", "diffusers", "numpy", "transformers"},
    6: {"torchmetrics", "torchvision"},
    7: {"deepspeed", "packaging", "trackio", "wandb"},
    8: {"jinja2", "markupsafe"},
    9: {"starlette", "uvicorn"},
    10: {"comfy", "folder_paths", "rich"},
}
# Plugins of Pillow, for the one module that needs them.
LIBRARIES[5] |= {"pillow_heif", "pillow_jxl"}
# Packages of quantized layers, beside bitsandbytes.
LIBRARIES[5] |= {"gguf", "optimum", "torchao"}

# Rooms that may import a library of a higher floor inside functions: a family asks diffusers for embeddings that its
# pipeline computes and hands to the denoiser.
LATE: dict[str, set[str]] = {"models": {"diffusers"}}
