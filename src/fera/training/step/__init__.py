"""One optimizer step: which examples, which noise, which losses, the optimizer, averages."""
