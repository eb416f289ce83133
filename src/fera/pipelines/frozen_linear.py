"""Linear layers whose frozen weight is held in few bits and made dense for a product, forward and backward.

Layers that multiply with a dense copy leave it to autograd until the backward pass: after a forward of the whole
denoiser, all of it would be there at full size. These remember what is held, and make it dense again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FP8 = torch.float8_e4m3fn


class Fp8Linear(nn.Linear):
    """A linear layer held in 8-bit floats (E4M3), each row with a scale of its own.

    `weight` holds the bits, shape (out, in), as uint8: casts of the whole model, and what would add to the weight,
    leave it alone or fail. `weight_scale` is float32, shape (out,).
    """

    weight_scale: nn.Parameter

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., in) to (..., out)."""
        return _from_fp8(input, self.weight, self.weight_scale, self.bias)


def fp8_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (out, in) as bits of 8-bit floats, and the scale of each row, float32 (out,)."""
    exact = weight.float()
    scale = (exact.abs().amax(dim=1) / torch.finfo(FP8).max).clamp(min=1e-12)
    return (exact / scale[:, None]).to(FP8).view(torch.uint8), scale


def hold_in_fp8(layer: nn.Linear, weight: Tensor, scale: Tensor | None = None) -> None:
    """Turn a linear layer into an `Fp8Linear`.

    Args:
        layer: the layer; its bias stays.
        weight: what it is to hold: full precision, to be rounded, or with `scale` what `fp8_of` gave.
        scale: of each row.
    """
    bits, scale = fp8_of(weight) if scale is None else (weight, scale)
    layer.__class__ = Fp8Linear
    layer._parameters["weight"] = nn.Parameter(bits, requires_grad=False)
    layer._parameters["weight_scale"] = nn.Parameter(scale, requires_grad=False)


class TorchaoLinear(nn.Linear):
    """A linear layer whose weight is a tensor of torchao's."""

    def forward(self, input: Tensor) -> Tensor:
        """Shape (..., in) to (..., out)."""
        return _through(self, input)

    def product(self, input: Tensor) -> Tensor:
        """As torchao computes it."""
        return functional.linear(input, self.weight, self.bias)

    def dense(self) -> Tensor:
        """The weight, shape (out, in)."""
        dense: Any = self.weight
        found: Tensor = dense.dequantize()
        return found


def hold_gguf(model: nn.Module, dtype: torch.dtype) -> None:
    """Let the layers of a model that diffusers read from a GGUF file leave no dense weight to autograd.

    Args:
        model: the model.
        dtype: what weights become that are held in few bits but not in a linear layer, which alone can compute so.
    """
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    class GgufLinear(GGUFLinear):
        def forward(self, input: Tensor) -> Tensor:
            return _through(self, input)

        def product(self, input: Tensor) -> Tensor:
            output: Tensor = super().forward(input.to(self.compute_dtype))
            return output

        def dense(self) -> Tensor:
            found: Tensor = dequantize_gguf_tensor(self.weight)
            return found

    GgufLinear.__name__ = GgufLinear.__qualname__ = GGUFLinear.__name__
    for layer in model.modules():
        if type(layer) is GGUFLinear:
            layer.__class__ = GgufLinear
            continue
        for name, weight in layer.named_parameters(recurse=False):
            if isinstance(weight, GGUFParameter):
                layer._parameters[name] = nn.Parameter(dequantize_gguf_tensor(weight).to(dtype), requires_grad=False)


def hold_quanto(layer: nn.Module) -> None:
    """Let a layer of quanto's heed the dtype of autocast; it leaves nothing dense to autograd itself."""
    from optimum.quanto import QLinear

    class QuantoLinear(QLinear):  # type: ignore[misc]
        def forward(self, input: Tensor) -> Tensor:
            output: Tensor = super().forward(_as_computed(input))
            return output

    QuantoLinear.__name__ = QuantoLinear.__qualname__ = QLinear.__name__
    layer.__class__ = QuantoLinear


def _through(layer: Any, input: Tensor) -> Tensor:
    output: Tensor = _HeldProduct.apply(_as_computed(input), layer)
    return output


def _from_fp8(input: Tensor, bits: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    input = _as_computed(input)
    output: Tensor = _Fp8Product.apply(input, bits) * scale.to(input.dtype)
    return output if bias is None else output + bias.to(input.dtype)


def _as_computed(input: Tensor) -> Tensor:
    """An input in the dtype of the block's autocast, as PyTorch's own layers compute."""
    device = input.device.type
    return input.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else input


class _Fp8Product(torch.autograd.Function):
    """x times the transposed matrix, without its scales: those of rows are the output's."""

    @staticmethod
    def forward(input: Tensor, bits: Tensor) -> Tensor:
        return functional.linear(input, bits.view(FP8).to(input.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (bits,), (gradient,) = ctx.saved_tensors, gradients
        return gradient @ bits.view(FP8).to(gradient.dtype), None


class _HeldProduct(torch.autograd.Function):
    """A frozen layer's output; its backward asks the layer for the dense weight anew."""

    @staticmethod
    def forward(input: Tensor, layer: Any) -> Tensor:
        output: Tensor = layer.product(input)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layer, ctx.dtype = inputs[1], inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = gradients
        return (gradient @ ctx.layer.dense().to(gradient.dtype)).to(ctx.dtype), None
