"""One module a command of the command line; `fera.cli` says what a command offers."""


def quiet_libraries() -> None:
    """Keep what transformers and diffusers say while they load out of a command's output; errors still show."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (transformers_logging, diffusers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
