"""A local page to train and watch in: `fera web`. It starts commands of fera and reads folders of runs."""
