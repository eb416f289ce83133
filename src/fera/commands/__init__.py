"""One module a command of the command line; `fera.cli` says what a command offers."""
