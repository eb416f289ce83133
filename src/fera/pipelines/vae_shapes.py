"""What the file of an autoencoder says of it: its settings, by the shapes of its weights."""

from typing import Any

from fera.pipelines.file_shapes import Shapes, count


def vae_settings(class_name: str, shapes: Shapes) -> dict[str, Any]:
    """Settings that shapes say; none of classes that were published in one size.

    Args:
        class_name: of the autoencoder in diffusers.
        shapes: of its weights by their original names.
    """
    if class_name != "AutoencoderKL" or "encoder.down.0.block.0.conv1.weight" not in shapes:
        return {}
    levels = count(shapes, "encoder.down.")
    channels = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": count(shapes, "encoder.down.0.block."),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }
