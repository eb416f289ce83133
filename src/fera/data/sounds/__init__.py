"""Sounds: what a look at one tells, what of it is trained on, and its samples, by PyAV."""
