"""The folder of a run: what is in it, its checkpoints, its lock, and what a resumed run must have in common."""
