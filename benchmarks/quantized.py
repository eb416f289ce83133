"""The ways to hold linear layers in few bits: what each needs and takes, and whether it trains on a CPU.

    python -m benchmarks.quantized

prints the table of docs/memory.md. `--try` takes a step of a small transformer with each on this machine's CPU first,
and says where the table is wrong.
"""

import sys
import warnings

import torch
from diffusers import FluxTransformer2DModel
from peft import LoraConfig, inject_adapter_in_model

from fera.errors import FeraError
from fera.pipelines.quantization import quantize
from fera.pipelines.quantization_kinds import KINDS

# A layer of FLUX.1.
_WIDTH = 3072


def table() -> str:
    """The table as Markdown."""
    head = ["`quantization`", "what", "by", "bytes a weight", "on a CPU", "blocks can wait"]
    lines = [head, ["---"] * len(head)]
    for name, kind in KINDS.items():
        each = kind.bytes_of(_WIDTH, _WIDTH, 2) / _WIDTH**2
        trains = "no: needs a CUDA GPU" if kind.needs_gpu else "trains"
        by, waits = kind.package or "fera", "yes" if kind.offloads else "no"
        lines.append([f"`{name}`", kind.title, by, f"{each:.2f}", trains, waits])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def trains_on_cpu(name: str) -> str:
    """Take a step of a LoRA on a small transformer of FLUX held so.

    Returns:
        "trains", or what kept it from that.
    """
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        axes_dims_rope=(16, 24, 24),
    ).bfloat16()
    try:
        quantize(model, name, torch.device("cpu"))
    except FeraError as error:
        return str(error)
    # One at the start: what comes behind passes its gradient on through quantized layers.
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["x_embedder"]), model)
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    noise = torch.randn(1, 6, 4).bfloat16()
    inputs = {
        "encoder_hidden_states": torch.randn(1, 3, 128).bfloat16(),
        "pooled_projections": torch.randn(1, 128).bfloat16(),
        "timestep": torch.full((1,), 0.5).bfloat16(),
        "img_ids": torch.zeros(6, 3),
        "txt_ids": torch.zeros(3, 3),
    }
    try:
        model(noise, **inputs).sample.float().square().mean().backward()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
    learns = all(gradient is not None and gradient.any() and gradient.isfinite().all() for gradient in gradients)
    return "trains" if learns else "no gradient"


if __name__ == "__main__":
    if "--try" in sys.argv[1:]:
        warnings.simplefilter("ignore")
        for name in KINDS:
            print(f"{name}: {trains_on_cpu(name)}")
    print(table(), end="")
