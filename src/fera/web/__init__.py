"""A local page to train, watch and draw in: `fera web`. It starts commands of fera and reads folders of runs."""
