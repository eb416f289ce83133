"""ACE-Step 1.5, whose encoders of words and sounds are in one model with the denoiser."""

from fera.export.comfyui.own import Names

NAMES: dict[str, Names] = {
    "AceStepTransformer1DModel": {
        r"(layers\.\d+\.(?:self|cross)_attn)\.to_([qkv])": r"decoder.\1.\2_proj",
        r"(layers\.\d+\.(?:self|cross)_attn)\.to_out\.0": r"decoder.\1.o_proj",
        r"proj_(in|out)_conv": r"decoder.proj_\1.1",
        "(.+)": r"decoder.\1",
    },
}
