"""Which files the page may touch: those of the folders that it was started with, links followed first."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel

from fera.config import TrainConfig
from fera.config.keys import keys
from fera.errors import FeraError

# Texts of a configuration that are a path, or may be one.
_PATHS = ("data.source_path", "validation.sources", "validation.masks")
_PATHS_OR_IDS = ("base", "data.dataset_name", "adapter.start_from")


class Places:
    """Folders that the page reads and writes.

    Args:
        root: the folder whose runs are shown and where commands run.
        also: folders of data or bases outside it.

    Raises:
        FeraError: one of them is no folder.
    """

    def __init__(self, root: Path, also: Sequence[Path] = ()) -> None:
        self.root = _folder(root)
        self.also = [_folder(path) for path in also]

    def inside(self, path: str | Path) -> Path:
        """Where a path leads, with all links followed.

        Args:
            path: relative to the root, or absolute; it need not exist.

        Raises:
            FeraError: it leads out of the folders, or is no path.
        """
        try:
            found = (self.root / path).resolve()
        except (OSError, ValueError, RuntimeError):  # a NUL, too long, links in a circle
            raise FeraError("that is no path") from None
        if not any(found.is_relative_to(folder) for folder in (self.root, *self.also)):
            raise FeraError(
                f"{path} is outside of {', '.join(map(str, (self.root, *self.also)))}. Put it there, or start "
                "`fera web` with --also and its folder"
            )
        return found

    def name(self, path: Path) -> str:
        """A path as the page calls it: relative to the root where it is inside.

        Args:
            path: absolute, without links.
        """
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def check(self, config: TrainConfig) -> None:
        """See that a run reads and writes inside the folders alone.

        Raises:
            FeraError: a path of the configuration leads out of them.
        """
        if config.data.follow_symlinks:
            raise FeraError(
                "data.follow_symlinks would read outside of the folders of this page: train by `fera train`"
            )
        for name, path in _paths(config):
            try:
                self.inside(path)
            except FeraError as error:
                raise FeraError(f"{name}: {error}") from None


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FeraError(f"{path} is no folder; make it first, or give another")
    return path.resolve()


def _paths(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Names and texts of all that may be a path; what the Hub calls by a name is none that leads out."""
    for key in keys():
        value: object = config
        for part in key.name.split("."):
            value = getattr(value, part)
        if isinstance(value, Path):
            yield key.name, str(value)
        elif key.name in _PATHS + _PATHS_OR_IDS and value is not None and not isinstance(value, BaseModel):
            yield from ((key.name, str(one)) for one in (value if isinstance(value, list) else [value]))
