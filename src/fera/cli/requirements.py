"""What the command line needs beyond the library: the extra `train`."""

from importlib.util import find_spec

from fera.errors import FeraError

# A module of each package of the extra.
_MODULES = (
    *("accelerate", "jinja2", "markupsafe", "matplotlib", "numpy", "PIL", "pydantic", "rich", "tensorboard"),
    "torchmetrics",
)


def check_installed() -> None:
    """See that all is there, before any work is begun.

    Raises:
        FeraError: the library was installed without the extra.
    """
    missing = [name for name in _MODULES if find_spec(name) is None]
    if missing:
        raise FeraError(
            f"the command line needs {', '.join(missing)}, which is not installed: pip install 'fera[train]'"
        )
