"""Routed adapters in ComfyUI: nodes that load, steer and watch them while its samplers draw.

`adapter` reads a file without PEFT or diffusers, `layers` finds its layers in ComfyUI's model, `latent` is what its
router reads there, `routing` acts in each call of the model, `nodes` is what people see. ComfyUI loads them from the
folder `comfyui/` of the repository; docs/comfyui.md is the page for its users.
"""
