"""What an adapter has beside its denoiser's experts: LoRA on the CLIP text encoders, and a learned token.

`encoders` finds the encoders of a pipeline, `lora` and `tokens` change one of them, `files` reads and writes, `parts`
puts all of it into a pipeline and takes it out. All go by the adapter's name.
"""
