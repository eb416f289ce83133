"""Fine-tune diffusion models with frequency-energy routed experts (FeRA).

Importing fera registers FeRA with PEFT; `peft.get_peft_model` and friends then take a `FeraConfig`. It is light: PEFT,
PyTorch and diffusers are imported when a name that needs them is used.
"""

from typing import TYPE_CHECKING

from fera import registration
from fera.support.lazy import lazy_names
from fera.version import __version__ as __version__

if TYPE_CHECKING:
    from fera import demo
    from fera.errors import FeraError
    from fera.export.merging import merge
    from fera.method.bands import FrequencyBands
    from fera.method.calibration import calibrate_kappa
    from fera.method.consistency import frequency_energy_consistency
    from fera.method.router import SoftFrequencyRouter
    from fera.models.layers import choose_layers
    from fera.models.registry import register_denoiser
    from fera.pipelines.adapters import load_adapter, save_adapter, set_adapters, trace, unload
    from fera.pipelines.compression import compress
    from fera.tuner.config import FeraConfig
    from fera.tuner.model import FeraModel
    from fera.tuner.start import start_router
    from fera.tuner.updates import route_updates

__all__ = [
    "FeraConfig",
    "FeraError",
    "FeraModel",
    "FrequencyBands",
    "SoftFrequencyRouter",
    "calibrate_kappa",
    "choose_layers",
    "compress",
    "demo",
    "frequency_energy_consistency",
    "load_adapter",
    "merge",
    "register_denoiser",
    "route_updates",
    "save_adapter",
    "set_adapters",
    "start_router",
    "trace",
    "unload",
]

registration.register_with_peft()


__getattr__ = lazy_names(
    __name__,
    {
        "FeraConfig": "fera.tuner.config",
        "FeraError": "fera.errors",
        "FeraModel": "fera.tuner.model",
        "FrequencyBands": "fera.method.bands",
        "SoftFrequencyRouter": "fera.method.router",
        "calibrate_kappa": "fera.method.calibration",
        "choose_layers": "fera.models.layers",
        "compress": "fera.pipelines.compression",
        "demo": "fera.demo",
        "frequency_energy_consistency": "fera.method.consistency",
        "load_adapter": "fera.pipelines.adapters",
        "merge": "fera.export.merging",
        "register_denoiser": "fera.models.registry",
        "route_updates": "fera.tuner.updates",
        "save_adapter": "fera.pipelines.adapters",
        "set_adapters": "fera.pipelines.adapters",
        "start_router": "fera.tuner.start",
        "trace": "fera.pipelines.adapters",
        "unload": "fera.pipelines.adapters",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
