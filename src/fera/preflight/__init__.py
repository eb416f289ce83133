"""What is said before a run: whether its data would do, what it would cost, which kappa suits it."""
