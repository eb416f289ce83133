"""What a router saw and answered along the denoising steps: curves, a plot, the gates of a table."""
