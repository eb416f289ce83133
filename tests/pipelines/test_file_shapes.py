"""Files of denoisers at the sizes that people have: their shapes make the configuration, without weights or network."""

import json

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from original_names import z_image
from original_transformers import PREFIX, flux, qwen_image, stable_diffusion_3, wan

from fera.pipelines.file_shapes import kind_of

# As published, where a class's own defaults are another release's.
SD35_LARGE = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
SD35_MEDIUM = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
WAN_SMALL = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
WAN_5B = {"num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}
WAN_IMAGE = {"in_channels": 36, "out_channels": 16, "image_dim": 1280, "added_kv_proj_dim": 5120}
CASES = {
    "FLUX.1 dev": (FluxTransformer2DModel, {"guidance_embeds": True}, flux, 11_901_408_320),
    "FLUX.1 schnell": (FluxTransformer2DModel, {}, flux, 11_891_178_560),
    "FLUX.1 Fill": (
        FluxTransformer2DModel,
        {"in_channels": 384, "out_channels": 64, "guidance_embeds": True},
        flux,
        None,
    ),
    "SD 3.5 Large": (SD3Transformer2DModel, SD35_LARGE, stable_diffusion_3, None),
    "SD 3.5 Medium": (SD3Transformer2DModel, SD35_MEDIUM, stable_diffusion_3, None),
    "Wan 2.1 1.3B": (WanTransformer3DModel, WAN_SMALL, wan, 1_418_996_800),
    "Wan 2.2 14B": (WanTransformer3DModel, {}, wan, 14_288_491_584),
    "Wan 2.1 image to video": (WanTransformer3DModel, WAN_IMAGE, wan, None),
    "Wan 2.2 5B": (WanTransformer3DModel, WAN_5B, wan, 4_999_787_712),
    "Qwen-Image": (QwenImageTransformer2DModel, {}, qwen_image, 20_430_401_088),
    "Z-Image": (ZImageTransformer2DModel, {}, z_image, None),
}
CONVERTERS = {
    flux: convert_flux_transformer_checkpoint_to_diffusers,
    stable_diffusion_3: convert_sd3_transformer_checkpoint_to_diffusers,
    wan: convert_wan_transformer_to_diffusers,
    z_image: convert_z_image_transformer_checkpoint_to_diffusers,
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_say_what_the_settings_were(name):
    """diffusers' own converter names the same weights of the same shapes as the model that the settings make."""
    cls, settings, rename, parameters = CASES[name]
    with torch.device("meta"):
        model = cls(**settings)
    assert parameters in (None, model.num_parameters())
    weights = rename(model)
    kind = kind_of({key.removeprefix(PREFIX): tuple(weight.shape) for key, weight in weights.items()})
    assert (
        kind is not None
        and kind.class_name == cls.__name__
        and kind.name.split(" ")[0] in (name.split(" ")[0], "Stable")
    )
    said = kind.settings({key.removeprefix(PREFIX): tuple(weight.shape) for key, weight in weights.items()}, {})
    json.dumps(said)
    with torch.device("meta"):
        other = cls.from_config(said)
    if rename is qwen_image:
        converted = {key.removeprefix(PREFIX): weight for key, weight in weights.items()}
    else:
        converted = CONVERTERS[rename](dict(weights))
    expected = {key: weight.shape for key, weight in model.state_dict().items()}
    assert {key: weight.shape for key, weight in other.state_dict().items()} == expected
    assert {key: weight.shape for key, weight in converted.items()} == expected
    for key in said:
        ours, theirs = other.config[key], model.config[key]
        assert ours == theirs or (key == "out_channels" and theirs is None) or list(ours) == list(theirs), key


def test_other_files_are_of_no_kind():
    assert kind_of({}) is None
    assert kind_of({"conv_in.weight": (320, 4, 3, 3)}) is None
