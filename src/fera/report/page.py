"""From contents to one HTML file."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from fera.errors import FeraError
from fera.report.contents import Contents
from fera.report.figures import expert_style
from fera.support.files import replace_file
from fera.version import __version__

# What HTML does not hold: control characters, and halves of surrogate pairs that cannot be written at all.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def render(contents: Contents) -> str:
    """Fill the template.

    All text is escaped. The page allows itself its own style sheet and its own script, named by their digests, and
    pictures inside it: whatever text it shows, it runs nothing else and reaches no network.

    Args:
        contents: the contents of the page.

    Returns:
        A whole HTML document.
    """
    style, script = _template("report.css"), _template("report.js")
    page = (
        _environment()
        .get_template("report.html")
        .render(
            page=contents,
            style=Markup(style),
            script=Markup(script),
            style_digest=_digest(style),
            script_digest=_digest(script),
            expert_style=expert_style,
            version=__version__,
        )
    )
    return _UNPRINTABLE.sub("\ufffd", page)


def save(page: str, path: Path) -> None:
    """Write the file whole or not at all.

    Raises:
        FeraError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise FeraError(f"cannot write the report to {path}: {error.strerror or error}") from error


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,  # a mistyped name is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return files("fera.report").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
