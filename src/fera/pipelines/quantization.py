"""Quantizing a loaded denoiser with bitsandbytes, as diffusers does while it loads one.

diffusers quantizes on GPUs alone, though bitsandbytes' layers work on CPUs too. What is used here is its quantizer
without that check, so that a CPU runs, and tests, what a GPU runs.
"""

import importlib
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device
from diffusers import BitsAndBytesConfig
from diffusers.quantizers import DiffusersAutoQuantizer
from torch import Tensor, nn

from fera.errors import FeraError
from fera.pipelines.weight_files import files_of, is_same, mapped, tensors_of


def check_quantization(quantization: str) -> None:
    """See whether a denoiser could be quantized here.

    Args:
        quantization: "none", "8bit" or "4bit".

    Raises:
        FeraError: bitsandbytes is missing.
    """
    if quantization == "none":
        return
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise FeraError(
            f"quantization = {quantization!r} needs bitsandbytes ({error}): pip install 'fera[quantized]'"
        ) from error


def quantize(denoiser: nn.Module, quantization: str, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Quantize the weights of a denoiser's linear layers in place, one after the other.

    A weight that was loaded as its file holds it is read from there, so that the whole is never in memory before. What
    diffusers keeps in float32 in this class of denoisers stays as it is, and convolutions and norms are not quantized.

    Args:
        denoiser: the denoiser of diffusers.
        quantization: "8bit" (LLM.int8) or "4bit" (NF4); "none" does nothing.
        device: where to quantize; the denoiser is there afterwards.
        dtype: what forwards compute in; the dtype of the denoiser's weights when left out.

    Raises:
        FeraError: bitsandbytes is missing, or the denoiser is quantized already.
    """
    check_quantization(quantization)
    if quantization == "none":
        return
    if getattr(denoiser, "is_quantized", False):
        raise FeraError("the base is quantized already: leave quantization out")
    model: Any = denoiser
    dtype = dtype or model.dtype
    quantizer = DiffusersAutoQuantizer.from_config(_config(quantization, dtype), pre_quantized=False)
    weights = _Weights(model)
    exact = model._keep_in_fp32_modules or []
    exact = [exact] if isinstance(exact, str) else list(exact)
    quantizer.preprocess_model(model, device_map=None, keep_in_fp32_modules=exact)
    for name, parameter in list(model.named_parameters()):
        if not {*exact}.isdisjoint(name.split(".")):
            continue
        if not parameter.is_meta:
            parameter.data = weights.take(name).to(dtype)
            continue
        # Its new layers hold nothing yet.
        value = weights.take(name).to(dtype)
        if quantizer.check_if_quantized_param(model, value, name, {}):
            quantizer.create_quantized_param(model, value, name, device, {})
        else:
            set_module_tensor_to_device(model, name, device, value=value)
    if not exact or dtype == torch.float32:
        # As diffusers does where nothing is to stay in float32.
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = buffer.to(dtype)
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # Some CPUs repack weights at the first forward in evaluation mode, for a kernel without gradients.
            layer.support_avx512bf16_for_cpu = False
    model.requires_grad_(False).to(device)


class _Weights:
    """Weights of a model, each given away once, and read from its file where that holds it as it is."""

    def __init__(self, model: nn.Module) -> None:
        self._held = model.state_dict()
        self._files = tensors_of(files_of(model))

    def take(self, name: str) -> Tensor:
        held = self._held.pop(name)
        # A mapping of its own: of the model's, pages would stay until the last weight is taken.
        return next(
            (mapped(path, name) for path in self._files.get(name, ()) if is_same(held, mapped(path, name))), held
        )


def _config(quantization: str, dtype: torch.dtype) -> Any:
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
