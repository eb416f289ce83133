"""Caption and metadata files that are not what they may seem: shared by pictures, or not read at all."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from fera.data.example import Example, some_of
from fera.data.sources.files import CAPTION_SUFFIXES, METADATA_NAMES, entries_in, images_below, is_file, is_folder


class Beside:
    """Finds caption files beside pictures; lists each folder once."""

    def __init__(self) -> None:
        self._listed: dict[Path, tuple[set[str], set[str]]] = {}

    def __call__(self, image: Path) -> list[Path]:
        """Caption files of a picture's name; the first is the one that is read.

        Args:
            image: a picture, video or folder of frames.

        Raises:
            OSError: its folder cannot be listed.
        """
        captions, folders = self._list(image.parent)
        stem = image.name if image.name in folders else image.stem  # a dot in a folder's name begins no ending
        return [image.with_name(stem + suffix) for suffix in CAPTION_SUFFIXES if stem + suffix in captions]

    def _list(self, folder: Path) -> tuple[set[str], set[str]]:
        if folder not in self._listed:
            found = entries_in(folder)
            captions = {entry.name for entry in found if entry.name.endswith(CAPTION_SUFFIXES) and is_file(entry)}
            self._listed[folder] = captions, {entry.name for entry in found if is_folder(entry)}
        return self._listed[folder]


def describe_sharing(examples: Sequence[Example], folder: Path) -> list[str]:
    """A line about each caption file that several pictures share, and about those that another one hides.

    Args:
        examples: the examples of a layout whose captions lie beside pictures.
        folder: the data folder.
    """
    readers: dict[Path, list[str]] = {}
    hidden: list[str] = []
    beside = Beside()
    for example in examples:
        for path in (found := beside(example.image))[:1]:
            readers.setdefault(path, []).append(example.name)
        hidden += [_name(path, folder) for path in found[1:]]
    notes = [
        f"{_name(path, folder)} is the caption of {len(names)} pictures: {some_of(names)}"
        for path, names in readers.items()
        if len(names) > 1
    ]
    return notes + _unread(dict.fromkeys(hidden), "there is a .txt file of the same name")


def describe_metadata(examples: Sequence[Example], folder: Path, metadata: Path) -> list[str]:
    """A line about captions beside pictures that have none in the metadata, and about whatever else it hides.

    Args:
        examples: the examples of an imagefolder; those without a row have no caption.
        folder: the data folder.
        metadata: the file that is read.
    """
    listed: list[str] = []
    unlisted: list[str] = []
    named = {example.image for example in examples if example.caption}
    beside = Beside()
    for image in images_below(folder):
        if captions := beside(image):
            (listed if image in named else unlisted).append(_name(captions[0], folder))
    notes = []
    if unlisted:
        count = "1 picture" if len(unlisted) == 1 else f"{len(unlisted)} pictures"
        notes.append(
            f"{count} without a caption in {metadata.name} have one beside them, which is not read: "
            f"{some_of(unlisted)}. Add rows for them, or remove {metadata.name}"
        )
    others = [folder / name for name in METADATA_NAMES if (folder / name).is_file() and (folder / name) != metadata]
    return [
        *notes,
        *_unread(listed, f"{metadata.name} has the captions"),
        *_unread([path.name for path in others], f"{metadata.name} is"),
    ]


def describe_inner_metadata(folder: Path, inner: Iterable[Path]) -> list[str]:
    """A line about metadata in the folders of a layout that does not read it."""
    found = [_name(path / name, folder) for path in inner for name in METADATA_NAMES if (path / name).is_file()]
    return _unread(found, "it counts in the data folder itself alone")


def _unread(names: Iterable[str], reason: str) -> list[str]:
    found = list(names)
    if not found:
        return []
    return [f"{'1 file is' if len(found) == 1 else f'{len(found)} files are'} not read, for {reason}: {some_of(found)}"]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
