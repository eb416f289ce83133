"""The colours of pages and charts: read by all, also by who does not see red from green."""

import itertools
import re
from importlib.resources import files

import numpy as np
import pytest

CSS = files("fera.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
SCHEMES = ("light", "dark")
# Viénot, Brettel and Mollon (1999): how a colour looks without one kind of cones, in linear RGB.
PROTAN = [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, -0.0], [0.00401, -0.00401, 1.0]]
DEUTAN = [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, -0.0], [-0.02234, 0.02234, 1.0]]


def colours(scheme):
    blocks = re.findall(r":root\s*\{([^}]*)\}", CSS)
    held = dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", blocks[0]))
    return held | (dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", blocks[1])) if scheme == "dark" else {})


def linear(colour):
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG's ratio of luminances."""
    light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) + 0.05 for colour in (one, other))
    return light[1] / light[0]


def lab(rgb):
    """CIE L*a*b* of linear sRGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ rgb
    scaled = np.cbrt(np.clip(xyz / [0.9505, 1.0, 1.089], 1e-6, None))
    return np.array([116 * scaled[1] - 16, 500 * (scaled[0] - scaled[1]), 200 * (scaled[1] - scaled[2])])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_texts_and_lines_stand_out(scheme):
    held = colours(scheme)
    for ground in ("paper", "card"):
        for name in ("ink", "quiet", "main", "bad", "good"):
            assert contrast(held[name], held[ground]) >= 4.5, (name, ground)
        for number in range(1, 9):
            assert contrast(held[f"expert-{number}"], held[ground]) >= 3, (number, ground)
    assert contrast(held["paper"], held["main"]) >= 4.5  # the main button


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("sight", [np.eye(3), PROTAN, DEUTAN], ids=["all cones", "no red", "no green"])
def test_experts_are_told_apart(scheme, sight):
    """Of the four that adapters usually have at most; more are told apart by their words and places too."""
    held = colours(scheme)
    seen = {number: lab(np.clip(np.array(sight) @ linear(held[f"expert-{number}"]), 0, 1)) for number in range(1, 5)}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) >= 10, (one, other)
