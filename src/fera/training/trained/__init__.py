"""What is trained: routed experts or a baseline, and parts of the text encoders."""
