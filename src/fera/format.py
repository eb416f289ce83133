"""The format of an adapter's files: their names, the names in them, their version.

The names are PEFT's where PEFT has one. Everything that reads or writes adapters takes them from here.
So do the names of what one command writes for others to follow.
"""

# Of the settings. A file of a newer version is refused.
FORMAT_VERSION = 1

# Names of the two files of an adapter.
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

# Where the metadata of the weights holds the settings too, as JSON.
METADATA_KEY = "fera"

# What keys of tensors start with.
PEFT_PREFIX = "base_model.model."

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
