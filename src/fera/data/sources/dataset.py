"""Datasets of the Hub, and folders of parquet and Arrow files as the `datasets` package writes them.

Pictures come as encoded bytes. They are written to files of Hugging Face's cache that are named by what they hold, and
are then checked, encoded and trained on like any others. What a dataset calls its pictures is never used as a path.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fera.config import DataConfig
from fera.data.captions import clean
from fera.data.example import Example, Source
from fera.data.sources.files import check_inside
from fera.data.sources.saved import saved_splits
from fera.data.sources.stored import stored
from fera.errors import PROGRAMMING_ERRORS, FeraError

# "train-00000-of-00002.parquet", or plainly "test.parquet"; any other name is of the split "train".
_SHARD = re.compile(r"(\w+)-\d{5}-of-\d{5}(?:-\w+)?|(train|validation|test)")


def parquet_files(folder: Path) -> list[Path]:
    """Parquet files that lie in a folder itself or, as on the Hub, in `data/` in it, by name."""
    for place in (folder, folder / "data"):
        found = sorted(path for path in place.glob("*.parquet") if path.is_file() and not path.name.startswith("."))
        if found:
            return found
    return []


def read_parquet(files: Sequence[Path], folder: Path, config: DataConfig) -> list[Example]:
    """Pictures and captions of the rows of parquet files, in their order.

    Args:
        files: at least one.
        folder: the data folder.
        config: names of columns and of the split.

    Raises:
        FeraError: `datasets` is missing, a file or column cannot be used, or there is no such split.
    """
    splits: dict[str, list[str]] = {}
    for path in files:
        check_inside(path, folder, follow_symlinks=config.follow_symlinks)
        match = _SHARD.fullmatch(path.stem)
        splits.setdefault((match[1] or match[2]) if match else "train", []).append(str(path))
    dataset = _load(str(folder), "parquet", data_files=splits, split=config.dataset_split)
    return _examples(dataset, str(folder), [], config)


def read_saved(splits: Mapping[str, Sequence[str]], source: str, config: DataConfig) -> list[Example]:
    """Pictures and captions of the rows of a dataset that was saved to disk, in their order.

    Args:
        splits: as `saved_splits` gives them.
        source: the folder, for messages.
        config: names of columns and of the split.

    Raises:
        FeraError: as `read_parquet`.
    """
    files = {split: list(paths) for split, paths in splits.items()}
    dataset = _load(source, "arrow", data_files=files, split=config.dataset_split)
    return _examples(dataset, source, [], config)


def read_dataset(name: str, config: DataConfig) -> list[Example]:
    """Pictures and captions of the rows of a dataset, in their order.

    Args:
        name: the name of the Hub, or a local path that `datasets.load_dataset` reads.
        config: names of columns, of the dataset's configuration and of its split.

    Raises:
        FeraError: `datasets` is missing, the dataset cannot be loaded, or a column cannot be used.
    """
    if config.dataset_rows is not None:
        return _stream(name, config.dataset_rows, config)
    if splits := saved_splits(Path(name), follow_symlinks=config.follow_symlinks):
        return read_saved(splits, name, config)
    dataset = _load(f"data.dataset_name {name!r}", name, name=config.dataset_config_name, split=config.dataset_split)
    return _examples(dataset, name, _picture_folders(name) if _has_files(dataset) else [], config)


def _stream(name: str, rows: int, config: DataConfig) -> list[Example]:
    """The first rows of a dataset, which are read as they come: nothing else of it is downloaded."""
    what = f"data.dataset_name {name!r}"
    options: dict[str, Any] = {"name": config.dataset_config_name, "split": config.dataset_split, "streaming": True}
    dataset = _load(what, name, **options)
    if dataset.features is None or _has_files(dataset):
        why = "is made of files" if dataset.features is not None else "does not say what its columns are"
        raise FeraError(f"{what} {why} and cannot be streamed: leave data.dataset_rows out")
    try:
        return _examples(dataset.take(rows), name, [], config)
    except (*PROGRAMMING_ERRORS, FeraError):
        raise
    except Exception as error:  # whatever goes wrong on the way to it
        raise FeraError(f"{what} breaks off: {str(error).strip() or type(error).__name__}") from error


def _load(what: str, path: str, **options: Any) -> Any:
    datasets = _package(what)
    try:
        return datasets.load_dataset(path, **options)
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # each of its builders fails in ways of its own
        causes = dict.fromkeys(str(e).strip() or type(e).__name__ for e in (error, error.__cause__) if e is not None)
        offline = " The network is off (HF_HUB_OFFLINE)." if datasets.config.HF_HUB_OFFLINE else ""
        raise FeraError(f"{what} cannot be loaded: {'; '.join(causes)}.{offline}".replace("..", ".")) from error


def _package(what: str) -> Any:
    """The package `datasets`, which not everybody needs."""
    try:
        import datasets
    except ImportError as error:
        raise FeraError(f"{what} needs datasets ({error}): pip install 'fera[datasets]'") from None
    return datasets


def _examples(dataset: Any, origin: str, folders: Sequence[Path], config: DataConfig) -> list[Example]:
    """A row each, named by its number; `folders` are those that files of pictures may lie in."""
    datasets = _package(origin)
    image, caption = _image_column(dataset, origin, config), _caption_column(dataset, origin, config)
    source = config.source_column if config.source_column in dataset.column_names else None
    dataset = dataset.select_columns([name for name in (image, caption, source) if name is not None])
    for name in (image, source):
        # Decoding is left to the checks that files go through.
        if name is not None and isinstance(dataset.features[name], datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
        elif name is not None and isinstance(getattr(dataset.features[name], "feature", None), datasets.Image):
            dataset = dataset.cast_column(name, datasets.List(datasets.Image(decode=False)))
    store = Path(datasets.config.HF_DATASETS_CACHE) / "fera"
    examples = []
    try:
        for number, row in enumerate(dataset):
            where = f"row {number} of {origin}"
            path = _picture(row[image], where, image, store, folders)
            text = _caption(row[caption], where, caption) if caption is not None else ""
            held = row[source] if source is not None and row[source] is not None else []
            sources = tuple(
                Source(_picture(one, where, str(source), store, folders))
                for one in (held if isinstance(held, list) else [held])
            )
            name = f"{number:06d}"
            examples.append(Example(path, clean(text, config), name=name, origin=where, sources=sources))
    except OSError as error:
        raise FeraError(f"pictures of {origin} cannot be written to {store}: {error.strerror or error}") from error
    return examples


def _image_column(dataset: Any, source: str, config: DataConfig) -> str:
    # `datasets` itself calls the pictures that `file_name` names `image`.
    names = [config.image_column, *(["image"] if config.image_column == "file_name" else [])]
    found = next((name for name in names if name in dataset.column_names), None)
    if found is None:
        raise FeraError(
            f"{source} has no column {names[-1]!r}; it has: {_nearest(names[-1], dataset.column_names)}. "
            "Set data.image_column to the column of the pictures"
        )
    return found


def _caption_column(dataset: Any, source: str, config: DataConfig) -> str | None:
    name = config.caption_column
    if name in dataset.column_names:
        return name
    if config.allow_missing_captions or config.instance_prompt is not None:
        return None
    raise FeraError(
        f"{source} has no column {name!r}; it has: {_nearest(name, dataset.column_names)}. "
        "Set data.caption_column to the column of the captions"
    )


def _nearest(name: str, columns: Iterable[str]) -> str:
    """Columns, the one that is most like a name first."""
    ranked = sorted(columns, key=lambda column: -difflib.SequenceMatcher(None, name, column).ratio())
    shown = [re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", column)[:40] for column in ranked]
    return ", ".join(shown[:12]) + (" …" if len(shown) > 12 else "")


def _picture(value: Any, where: str, column: str, store: Path, folders: Sequence[Path]) -> Path:
    """The file of a row's picture."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(content, bytes):
        return stored(content, store)
    path = value.get("path") if isinstance(value, Mapping) else None
    if content is None and isinstance(path, str) and _lies_in(path, folders):
        return Path(path)
    if content is None and isinstance(path, str):
        raise FeraError(
            f"{where} names a file, {path!r}, instead of holding its picture, as Dataset.to_parquet writes a dataset "
            "that was made of files. Files that the dataset does not bring along are not read; write it by "
            "Dataset.save_to_disk, which puts the pictures in, or call dataset = dataset.with_format('arrow').map("
            "datasets.table.embed_table_storage, batched=True) before Dataset.to_parquet"
        )
    what = "nothing" if value is None else type(content).__name__
    raise FeraError(
        f"{where}: {column!r} must hold an encoded picture, got {what}. Set data.image_column to the column of the "
        "pictures"
    )


def _caption(value: Any, where: str, column: str) -> str:
    """A row's caption; of several, the first."""
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FeraError(f"{where}: {column!r} must be text or a list of texts, got {repr(value)[:80]}")
    return value


def _lies_in(path: str, folders: Sequence[Path]) -> bool:
    try:
        return any(Path(path).resolve().is_relative_to(folder) for folder in folders)
    except (ValueError, OSError, RuntimeError):  # no path, or links in a circle
        return False


def _has_files(dataset: Any) -> bool:
    """Whether `datasets` leaves pictures in the files that it found or downloaded, and gives their paths."""
    return dataset.info.builder_name == "imagefolder"


def _picture_folders(name: str) -> list[Path]:
    """Where pictures of a dataset lie that is made of files: its own folder, or what was downloaded of it."""
    local = Path(name)
    if local.exists():
        return [(local if local.is_dir() else local.parent).resolve()]
    from datasets import config
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return [repository.resolve(), Path(config.DOWNLOADED_DATASETS_PATH).resolve()]
