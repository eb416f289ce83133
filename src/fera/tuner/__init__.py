"""FeRA as a PEFT tuner. Importing this package registers it."""

import aenum
from peft import PeftType
from peft.utils import register_peft_method

if "FERA" not in PeftType.__members__:
    aenum.extend_enum(PeftType, "FERA", "FERA")

from fera.tuner.config import FeraConfig  # noqa: E402  (the config needs PeftType.FERA)
from fera.tuner.gate import FrequencyGate, Routing  # noqa: E402
from fera.tuner.model import FeraModel  # noqa: E402
from fera.tuner.start import start_router  # noqa: E402

register_peft_method(name="fera", config_cls=FeraConfig, model_cls=FeraModel, prefix="lora_")

__all__ = ["FeraConfig", "FeraModel", "FrequencyGate", "Routing", "start_router"]
