"""The format of an adapter's files: their names, the names in them, their version.

The names are PEFT's where PEFT has one. Everything that reads or writes adapters takes them from here.
So do the names of what one command writes for others to follow.
"""

import re

# Of the settings. A file of a newer version is refused. In files of version 1 the experts have PEFT's names for a LoRA.
FORMAT_VERSION = 2

# Names of the two files of an adapter.
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

# Where the metadata of the weights holds the settings too, as JSON.
METADATA_KEY = "fera"

# What keys of tensors start with.
PEFT_PREFIX = "base_model.model."

# The two sides of LoRA experts in a file. Under PEFT's own names tools for plain LoRAs took them, as ComfyUI did on
# SD3, and all experts acted at once. Under names that no such tool knows nothing of the file does.
_STORED = {"lora_A": "experts_A", "lora_B": "experts_B"}
_KNOWN = {stored: known for known, stored in _STORED.items()}
_SIDE_KNOWN = re.compile(r"(?<=\.)lora_[AB](?=\.)")
_SIDE_STORED = re.compile(r"(?<=\.)experts_[AB](?=\.)")

# Name of the gate in a denoiser, and so in the keys of its routers.
GATE = "fera"
ROUTER_KEY = f"{GATE}.router."
SOFT_PROMPT_KEY = f"{GATE}.soft_prompt"

# Where a mixture of experts of another scheme keeps them: no module of a base is called so.
EXPERTS = "fera_experts"

# Files beside the weights with LoRA of the text encoders and with learned tokens; the second is a pattern.
TEXT_LORA = "text_encoder_lora.safetensors"
TOKEN_FILES = r"learned_embeds(_[2-9])?\.safetensors"

# What `fera generate --live` writes into the folder of its pictures.
LIVE = "live"
LIVE_STEPS = "steps.jsonl"


def stored_key(key: str) -> str:
    """The name of a tensor in an adapter's file, by its name in PEFT.

    Args:
        key: without the adapter's name in it. What is inside a mixture of another scheme keeps its name.
    """
    return key if f".{EXPERTS}." in key else _SIDE_KNOWN.sub(lambda side: _STORED[side[0]], key)


def peft_key(key: str) -> str:
    """The name in PEFT of a tensor, by its name in an adapter's file; files of format version 1 have PEFT's names."""
    return _SIDE_STORED.sub(lambda side: _KNOWN[side[0]], key)
