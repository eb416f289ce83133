"""WebDataset: tar archives whose members of one name make a sample, `0001.jpg` with `0001.txt` or `0001.json`.

Archives are read by Python's `tarfile`, member by member, and nothing is unpacked by its name. The `webdataset` package
reads them as well, and more than is wanted of files from strangers: addresses, commands after `pipe:`, pickles.
`datasets` has a reader too, which asks that all samples have the same endings.
"""

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fera.config import DataConfig
from fera.data.captions import clean
from fera.data.example import Example
from fera.data.index import stamp_of
from fera.data.picture_formats import IMAGE_SUFFIXES
from fera.data.sources.files import CAPTION_SUFFIXES, check_inside, is_named_safely
from fera.data.sources.stored import stored, stored_path
from fera.data.sources.tar_index import known_samples, note_samples
from fera.errors import FeraError
from fera.support.sqlite import user_folder

_TAR = ".tar"
_CAPTION_BYTES = 2**20
_PICTURE_BYTES = 2**29


@dataclass
class _Sample:
    name: str
    picture: str | None = None  # its file in the store
    texts: dict[str, str] = field(default_factory=dict)  # by their endings


def tar_files(folder: Path) -> list[Path]:
    """Tar archives that lie in a folder itself or in `data/` in it, by name."""
    for place in (folder, folder / "data"):
        found = sorted(path for path in place.glob(f"*{_TAR}") if path.is_file() and not path.name.startswith("."))
        if found:
            return found
    return []


def read_tars(files: Sequence[Path], folder: Path, config: DataConfig) -> list[Example]:
    """Pictures and captions of archives, in the order in which they lie in them.

    A caption is a member ending in `.txt` or `.caption`, or the field `data.caption_column` of one ending in `.json`.
    Pictures are kept as files beside the index of pictures, named by what they hold.

    Args:
        files: at least one.
        folder: the data folder.
        config: names the field of the captions.

    Raises:
        FeraError: an archive is damaged, holds what is no sample, or the pictures cannot be kept.
    """
    store = user_folder() / "pictures"
    examples = []
    for path in files:
        check_inside(path, folder, follow_symlinks=config.follow_symlinks)
        for sample in _known(path, store) or _read(path, store):
            where = f"{sample.name} in {path}"
            if sample.picture is None:
                raise FeraError(f"{where} has no picture, and {' and '.join(sample.texts)} of that name")
            picture = stored_path(sample.picture, store)
            caption = clean(_caption(sample, where, config), config)
            examples.append(Example(picture, caption, name=f"{path.stem}/{sample.name}", origin=where))
    return examples


def _known(path: Path, store: Path) -> list[_Sample] | None:
    rows = known_samples(path)
    if rows is None or not all(picture is None or stored_path(picture, store).is_file() for _, picture, _ in rows):
        return None
    return [_Sample(*row) for row in rows]


def _read(path: Path, store: Path) -> list[_Sample]:
    """Samples of an archive; members of one lie next to each other."""
    samples: list[_Sample] = []
    try:
        stamp = stamp_of(path)
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue  # folders; links lead to what is not in the archive
                name, ending = _split(member.name)
                is_wanted = ending in IMAGE_SUFFIXES or ending in (*CAPTION_SUFFIXES, ".json")
                if not is_wanted or PurePosixPath(name).name.startswith("."):
                    continue
                if not is_named_safely(name):
                    raise FeraError(f"{path} has a member with control characters in its name, {member.name!r}")
                if not samples or samples[-1].name != name:
                    samples.append(_Sample(name))
                _take(samples[-1], archive, member, ending, path, store)
    except (tarfile.TarError, EOFError) as error:
        raise FeraError(f"{path} is no tar archive that can be read ({error}); unpack compressed ones") from None
    except OSError as error:
        raise FeraError(f"pictures of {path} cannot be read or kept in {store}: {error.strerror or error}") from error
    note_samples(path, stamp, [(sample.name, sample.picture, sample.texts) for sample in samples])
    return samples


def _take(
    sample: _Sample, archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str, path: Path, store: Path
) -> None:
    is_picture = ending in IMAGE_SUFFIXES
    limit = _PICTURE_BYTES if is_picture else _CAPTION_BYTES
    if member.size > limit:
        raise FeraError(f"{member.name} in {path} has {member.size:,} bytes, more than {limit:,}")
    file = archive.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) < member.size:
        raise FeraError(f"{path} breaks off in {member.name}; it was cut")
    if not is_picture:
        try:
            sample.texts[ending] = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise FeraError(f"{member.name} in {path} is not UTF-8 text") from None
        return
    if sample.picture is not None:
        raise FeraError(f"{path} has two pictures called {member.name.rpartition('.')[0]}")
    sample.picture = stored(content, store).name


def _split(name: str) -> tuple[str, str]:
    """The name of a sample, its folders with it, and the ending of a member: from the first dot of its name on."""
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return f"{folder}{slash}{stem}", f"{dot}{ending}".lower()


def _caption(sample: _Sample, where: str, config: DataConfig) -> str:
    for ending in CAPTION_SUFFIXES:
        if ending in sample.texts:
            return sample.texts[ending]
    if ".json" not in sample.texts:
        return ""
    try:
        held = json.loads(sample.texts[".json"])
    except (ValueError, RecursionError) as error:
        raise FeraError(f"the JSON of {where} cannot be read: {error}") from None
    caption = held.get(config.caption_column) if isinstance(held, dict) else None
    if caption is not None and not isinstance(caption, str):
        raise FeraError(f"{where}: {config.caption_column!r} must be text, got {repr(caption)[:80]}")
    return caption or ""
