"""Quantizing a loaded denoiser's linear layers, one after the other, with the quantizers of diffusers.

diffusers quantizes with bitsandbytes on GPUs alone, though its layers work on CPUs too. What is used here are its
quantizers without that check, so that a CPU runs, and tests, what a GPU runs. 8-bit floats need no package.
"""

import warnings
from typing import Any

import torch
from accelerate.utils import set_module_tensor_to_device
from diffusers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig
from diffusers.quantizers import DiffusersAutoQuantizer
from torch import Tensor, nn

from fera.errors import FeraError
from fera.pipelines.frozen_linear import TorchaoLinear, hold_in_fp8, hold_quanto
from fera.pipelines.quantization_kinds import check_quantization
from fera.pipelines.weight_files import files_of, is_same, mapped, tensors_of
from fera.tuner.fingerprint import fingerprint, keep_fingerprint


def quantize(denoiser: nn.Module, quantization: str, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Quantize the weights of a denoiser's linear layers in place, one after the other.

    A weight that was loaded as its file holds it is read from there, so that the whole is never in memory before. What
    diffusers keeps in float32 in this class of denoisers stays as it is, and convolutions and norms are not quantized.
    The denoiser is known by the fingerprint that it had before.

    Args:
        denoiser: the denoiser of diffusers.
        quantization: a name in `KINDS`; "none" does nothing.
        device: where to quantize; the denoiser is there afterwards.
        dtype: what forwards compute in; the dtype of the denoiser's weights when left out.

    Raises:
        FeraError: as `check_quantization`, or the denoiser is quantized already.
    """
    check_quantization(quantization, device)
    if quantization == "none":
        return
    check_not_quantized(denoiser)
    known = fingerprint(denoiser)
    model: Any = denoiser
    dtype = dtype or model.dtype
    weights = _Weights(model)
    exact = model._keep_in_fp32_modules or []
    exact = [exact] if isinstance(exact, str) else list(exact)
    quantizer = _Fp8(model) if quantization == "fp8" else _Diffusers(model, quantization, exact, dtype)
    for name, parameter in list(model.named_parameters()):
        if not {*exact}.isdisjoint(name.split(".")):
            continue
        value = weights.take(name).to(dtype)
        if quantizer.takes(name, value):
            quantizer.put(name, value, device)
        elif parameter.is_meta:  # of a new layer that holds nothing yet
            set_module_tensor_to_device(model, name, device, value=value)
        else:
            parameter.data = value
    if not exact or dtype == torch.float32:
        # As diffusers does where nothing is to stay in float32.
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point():
                    module._buffers[name] = buffer.to(dtype)
    quantizer.finish()
    keep_fingerprint(model, known)
    model.requires_grad_(False).to(device)


def check_not_quantized(denoiser: Any) -> None:
    """Refuse a denoiser that came quantized.

    Raises:
        FeraError: it did.
    """
    if getattr(denoiser, "is_quantized", False) or getattr(denoiser, "hf_quantizer", None) is not None:
        raise FeraError("the base is quantized already: leave quantization out")


class _Fp8:
    """8-bit floats, by fera's own layer."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def takes(self, name: str, value: Tensor) -> bool:
        path, _, end = name.rpartition(".")
        return end == "weight" and type(self._model.get_submodule(path)) is nn.Linear

    def put(self, name: str, value: Tensor, device: torch.device) -> None:
        hold_in_fp8(self._model.get_submodule(name.rpartition(".")[0]), value.to(device))

    def finish(self) -> None:
        self._model.is_quantized = True


class _Diffusers:
    """A quantizer of diffusers.

    Args:
        model: the denoiser; gets layers that hold nothing yet, where the package has layers of its own.
        quantization: a name in `KINDS`.
        exact: names of modules that stay as they are.
        dtype: what forwards compute in.
    """

    def __init__(self, model: Any, quantization: str, exact: list[str], dtype: torch.dtype) -> None:
        self._model, self._quantization, self._dtype = model, quantization, dtype
        self._quantizer: Any = DiffusersAutoQuantizer.from_config(_config(quantization, dtype), pre_quantized=False)
        self._quantizer.preprocess_model(model, device_map=None, keep_in_fp32_modules=exact)
        if quantization.startswith("quanto"):
            # Its new layers have the dtype of those before, and what is put into them is cast to it.
            for parameter in model.parameters():
                if parameter.is_meta:
                    parameter.data = parameter.data.to(dtype)

    def takes(self, name: str, value: Tensor) -> bool:
        return bool(self._quantizer.check_if_quantized_param(self._model, value, name, {}))

    def put(self, name: str, value: Tensor, device: torch.device) -> None:
        self._quantizer.create_quantized_param(self._model, value, name, device, {}, [], dtype=self._dtype)
        layer = self._model.get_submodule(name.rpartition(".")[0])
        if self._quantization.startswith("torchao"):
            layer.__class__ = TorchaoLinear
        elif self._quantization.startswith("quanto"):
            hold_quanto(layer)

    def finish(self) -> None:
        self._quantizer.postprocess_model(self._model)
        self._model.hf_quantizer = self._quantizer
        for layer in self._model.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                # Some CPUs repack weights at the first forward in evaluation mode, for a kernel without gradients.
                layer.support_avx512bf16_for_cpu = False


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
    if quantization == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if quantization.startswith("quanto"):
        with warnings.catch_warnings():
            # That diffusers will leave it out one day is said in docs/memory.md.
            warnings.simplefilter("ignore", FutureWarning)
            return QuantoConfig(weights_dtype=quantization.removeprefix("quanto-"))
    from torchao import quantization as torchao

    if quantization == "torchao-int8":
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())
    if quantization == "torchao-fp8":
        return TorchAoConfig(torchao.Float8WeightOnlyConfig())
    return TorchAoConfig(torchao.Int4WeightOnlyConfig(int4_packing_format="tile_packed_to_4d"))
