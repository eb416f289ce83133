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
from torch import nn

from fera.errors import FeraError


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


def quantize(denoiser: nn.Module, quantization: str, device: torch.device) -> None:
    """Quantize the weights of a denoiser's linear layers in place.

    What diffusers keeps in float32 in this class of denoisers stays as it is, as do convolutions and norms.

    Args:
        denoiser: the denoiser of diffusers, its weights of one floating point type, which forwards compute in.
        quantization: "8bit" (LLM.int8) or "4bit" (NF4); "none" does nothing.
        device: where to quantize; the denoiser is there afterwards.

    Raises:
        FeraError: bitsandbytes is missing, or the denoiser is quantized already.
    """
    check_quantization(quantization)
    if quantization == "none":
        return
    if getattr(denoiser, "is_quantized", False):
        raise FeraError("the base is quantized already: leave quantization out")
    model: Any = denoiser
    quantizer = DiffusersAutoQuantizer.from_config(_config(quantization, model.dtype), pre_quantized=False)
    weights = model.state_dict()
    exact = model._keep_in_fp32_modules or []
    quantizer.preprocess_model(
        model, device_map=None, keep_in_fp32_modules=[exact] if isinstance(exact, str) else list(exact)
    )
    # Its new layers hold nothing yet.
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    for name in empty:
        if quantizer.check_if_quantized_param(model, weights[name], name, weights):
            quantizer.create_quantized_param(model, weights[name], name, device, weights)
        else:
            set_module_tensor_to_device(model, name, device, value=weights[name])
        del weights[name]
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # Some CPUs repack weights at the first forward in evaluation mode, for a kernel without gradients.
            layer.support_avx512bf16_for_cpu = False
    model.requires_grad_(False).to(device)


def _config(quantization: str, dtype: torch.dtype) -> Any:
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
