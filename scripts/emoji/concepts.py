"""Which concepts the base model learns.

A small model draws a few hundred concepts well or thousands badly. Kept are the things that all sets
draw, so that every style can be learned from, and compared on, concepts that the base knows.
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import sets

CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Travel & Places",
)  # all but "Symbols": two hundred lettered buttons, squares and arrows
MAX_WORDS = 3  # longer names tell variants apart: "open mailbox with raised flag"

# Many near-identical drawings, of which a model this small would learn the average.
_VARIANTS = re.compile(
    r"^(man|woman|men|women|person|people|family|couple|kiss|deaf|pregnant)(-|$)|-oclock$|-thirty$|-tone\d"
)


def category_by_name(archive: Path) -> dict[str, str]:
    """Read the Unicode category of every icon from a set's npm archive."""
    with tarfile.open(archive) as package:
        member = package.extractfile("package/metadata.json")
        if member is None:
            raise FileNotFoundError(f"{archive} holds no package/metadata.json")
        categories: dict[str, list[str]] = json.load(member)["categories"]
    return {name: category for category, names in categories.items() for name in names}


def base_concepts(work: Path) -> list[str]:
    """List the names of the concepts that the base model learns, of all three splits.

    Args:
        work: the work folder.

    Returns:
        Sorted names.
    """
    category = category_by_name(sets.fetch(sets.BASE, work / "npm"))
    drawn_by = [set(sets.load(style, work)[0]) for style in sets.STYLES]
    return [
        name
        for name in sets.load(sets.BASE, work)[0]
        if category.get(name) in CATEGORIES
        and not _VARIANTS.search(name)
        and len(sets.caption_of(name).split()) <= MAX_WORDS
        and all(name in names for names in drawn_by)
    ]
