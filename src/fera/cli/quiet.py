"""What the libraries print by themselves, kept out of the commands' output."""


def quiet_libraries() -> None:
    """Silence notes about optional packages, and the bars of loading weights; errors are still raised."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (transformers_logging, diffusers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
