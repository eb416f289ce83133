"""What the libraries print by themselves, kept out of the commands' output."""

import os


def quiet_libraries() -> None:
    """Silence notes about optional packages, and the bars of loading weights; errors are still raised."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
