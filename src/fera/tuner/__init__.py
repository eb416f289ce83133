"""FeRA as a PEFT tuner: `config`, `gate`, `layer`, `model`, as in each folder of `peft.tuners`.

All that touches the inside of PEFT is in this folder.
"""

# First: importing PEFT registers FeRA (`fera.registration`), and the modules below need its entry in PEFT's
# enumeration.
import peft  # noqa: F401  isort: skip

from fera.tuner.config import FeraConfig
from fera.tuner.gate import FrequencyGate
from fera.tuner.model import FeraModel
from fera.tuner.start import start_router

__all__ = ["FeraConfig", "FeraModel", "FrequencyGate", "start_router"]
