"""A diffusers pipeline: opened and quantized, and with adapters loaded, saved, activated, traced."""
