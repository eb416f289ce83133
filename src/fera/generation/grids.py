"""Pictures side by side, with labels, as one image."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from fera.errors import FeraError

# Sides of a cell in pixels: small images are enlarged to be seen, large ones reduced, whole ones are in their files.
_LEAST_SIDE = 128
_MOST_SIDE = 512
_GAP = 8
_INK = "#222222"
_FONT_SIZES = range(15, 8, -1)
_MOST_LINES = 3
_MOST_LETTERS = 300  # more is cut anyway


def make_grid(
    images: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Image.Image:
    """Arrange images in rows and columns on white.

    Images of different sizes share a cell size; each is scaled alike and centred.

    Args:
        images: rows of images, top to bottom; rows may differ in length; None leaves a cell empty.
        row_labels: one a row, at its left; none when left out.
        column_labels: one a column, above it; none when left out. Long labels wrap, then shrink, then are cut.

    Returns:
        The grid, RGB.

    Raises:
        FeraError: there is no image, or not as many labels as rows or columns.
    """
    present = [image for row in images for image in row if image is not None]
    if not present:
        raise FeraError("a grid needs at least one image")
    columns = max(len(row) for row in images)
    for labels, count, kind in ((row_labels, len(images), "rows"), (column_labels, columns, "columns")):
        if labels and len(labels) != count:
            raise FeraError(f"got {len(labels)} labels for {count} {kind}")
    scale = _scale(max(max(image.size) for image in present))
    cell_width = max(_scaled(image.width, scale) for image in present)
    cell_height = max(_scaled(image.height, scale) for image in present)
    tops = [_Label(text, cell_width) for text in column_labels]
    sides = [_Label(text, max(cell_width, 96)) for text in row_labels]
    left = max((label.width for label in sides), default=0) + (2 * _GAP if sides else _GAP)
    top = max((label.height for label in tops), default=0) + (2 * _GAP if tops else _GAP)
    grid = Image.new("RGB", (left + columns * (cell_width + _GAP), top + len(images) * (cell_height + _GAP)), "white")
    pen = ImageDraw.Draw(grid)
    for column, label in enumerate(tops):
        # Against the images, not the edge: labels differ in their number of lines.
        x = left + column * (cell_width + _GAP) + (cell_width - label.width) // 2
        label.draw(pen, x, top - _GAP - label.height, "center")
    for row, label in enumerate(sides):
        y = top + row * (cell_height + _GAP) + (cell_height - label.height) // 2
        label.draw(pen, left - _GAP - label.width, y, "right")
    for row, line in enumerate(images):
        for column, image in enumerate(line):
            if image is None:
                continue
            size = (_scaled(image.width, scale), _scaled(image.height, scale))
            x = left + column * (cell_width + _GAP) + (cell_width - size[0]) // 2
            y = top + row * (cell_height + _GAP) + (cell_height - size[1]) // 2
            grid.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (x, y))
    return grid


def prompt_grid(
    rows: Mapping[str, Sequence[Image.Image | None]], prompts: Sequence[str], columns: int = 8
) -> Image.Image:
    """A grid with one column a prompt, broken into blocks where there are many.

    Args:
        rows: images by their row's label, each with one image a prompt.
        prompts: the labels of the columns.
        columns: how many prompts a block shows at most.

    Returns:
        The grid, RGB.
    """
    columns = min(columns, max(1, len(prompts)))
    labels = list(rows) if len(rows) > 1 else ()
    blocks = []
    for start in range(0, len(prompts), columns):
        part = slice(start, start + columns)
        blocks.append(make_grid([line[part] for line in rows.values()], labels, prompts[part]))
    if not blocks:
        raise FeraError("a grid needs at least one image")
    grid = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        grid.paste(block, (0, top))
        top += block.height
    return grid


class _Label:
    """A text wrapped to a width, in the largest font that needs few enough lines."""

    def __init__(self, text: str, width: int) -> None:
        for size in _FONT_SIZES:
            self.font = _font(size)
            self.lines = _wrap(text[:_MOST_LETTERS], self.font, width)
            if len(self.lines) <= _MOST_LINES:
                break
        else:
            last = _cut(self.lines[_MOST_LINES - 1] + " …", self.font, width)
            self.lines = [*self.lines[: _MOST_LINES - 1], last]
        ascent, descent = self.font.getmetrics()
        self._line_height = ascent + descent
        self.width = max((round(self.font.getlength(line)) for line in self.lines), default=0)
        self.height = self._line_height * len(self.lines)

    def draw(self, pen: ImageDraw.ImageDraw, x: int, y: int, align: str) -> None:
        """Draw it with its upper left corner at (x, y)."""
        for number, line in enumerate(self.lines):
            spare = self.width - self.font.getlength(line)
            indent = spare if align == "right" else spare / 2
            pen.text((x + indent, y + number * self._line_height), line, fill=_INK, font=self.font)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        candidate = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(candidate) <= width:
            lines[-1] = candidate
        else:
            # A single word that is too long (a path, a script without spaces) breaks anywhere.
            while font.getlength(word) > width and len(word) > 1:
                place = _breaking_place(word, font, width)
                lines.append(word[:place])
                word = word[place:]
            lines.append(word)
    return lines


def _breaking_place(word: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """How many letters of a word fit, up to a hyphen or slash if there is one."""
    fitting = bisect_right(range(1, len(word)), width, key=lambda letters: int(font.getlength(word[:letters]))) or 1
    return max(word.rfind(mark, 0, fitting) for mark in "-/_") + 1 or fitting


def _cut(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while font.getlength(line) > width and len(line) > 2:
        line = line[:-2].rstrip(" …") + "…"
    return line


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise FeraError("this Pillow was built without FreeType, which the labels of a grid need")
    return font


def _scale(side: int) -> float:
    if side < _LEAST_SIDE:
        return -(-_LEAST_SIDE // side)  # a whole factor keeps pixel art even
    return min(1.0, _MOST_SIDE / side)


def _scaled(side: int, scale: float) -> int:
    return max(1, round(side * scale))
