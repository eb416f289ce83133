"""Fine-tune diffusion models with frequency-energy routed experts (FeRA).

Importing fera registers FeRA with PEFT; `peft.get_peft_model` and friends then take a `FeraConfig`.
"""

from fera import demo
from fera.bands import FrequencyBands
from fera.calibration import calibrate_kappa
from fera.consistency import frequency_energy_consistency
from fera.denoisers import register_denoiser
from fera.errors import FeraError
from fera.export import merge
from fera.pipelines import load_adapter, save_adapter, set_adapters, trace, unload
from fera.router import SoftFrequencyRouter
from fera.tuner import FeraConfig, FeraModel, start_router

__version__ = "0.1.0"

__all__ = [
    "FeraConfig",
    "FeraError",
    "FeraModel",
    "FrequencyBands",
    "SoftFrequencyRouter",
    "calibrate_kappa",
    "demo",
    "frequency_energy_consistency",
    "load_adapter",
    "merge",
    "register_denoiser",
    "save_adapter",
    "set_adapters",
    "start_router",
    "trace",
    "unload",
]
