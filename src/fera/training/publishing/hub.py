"""Publishing an adapter on the Hugging Face Hub: its folder with its card, without paths of this machine.

The token comes from `hf auth login` or the environment; fera has no setting for it.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from fera.adapters.file import open_adapter
from fera.adapters.tensors import save_tensors
from fera.errors import PROGRAMMING_ERRORS, FeraError
from fera.format import METADATA_KEY, WEIGHTS
from fera.pipelines.base import EMOJI
from fera.training.publishing.card import CARD, REPOSITORY, adapter_card

_T = TypeVar("_T")
# What an adapter's folder is made of. Anything else in it stays here.
_UPLOADED = {".safetensors", ".json", ".md", ".png", ".jpg", ".jpeg", ".webp"}
_NAMES_THE_BASE = ("base_model_name_or_path", "_name_or_path")


def claim_repo(repo_id: str, *, private: bool = False) -> str:
    """Make sure of a repository to push to, so that a run does not find out at its end that there is none.

    Args:
        repo_id: "owner/name", or a name of one's own. Made if it is missing.
        private: the private of a new one.

    Returns:
        "owner/name".

    Raises:
        FeraError: the id is not valid, nobody is logged in, or the Hub cannot be reached or refuses.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise FeraError(f"{repo_id!r} is no id of a repository on the Hub (owner/name): {_first_line(error)}") from None
    if huggingface_hub.get_token() is None:
        raise FeraError(f"cannot push to {repo_id}: nobody is logged in. Run `hf auth login`, or set HF_TOKEN")
    api = huggingface_hub.HfApi()
    made = _reach(lambda: api.create_repo(repo_id, private=private, exist_ok=True), f"cannot push to {repo_id}")
    return str(made.repo_id)


def push_adapter(folder: Path, repo_id: str) -> tuple[str, list[str]]:
    """Upload an adapter's folder; its card is made if it has none.

    Args:
        folder: the folder of the adapter.
        repo_id: "owner/name", as `claim_repo` gives it.

    Returns:
        Address of the commit, and names of files that were not uploaded because they are none of an adapter's.

    Raises:
        FeraError: the folder holds no adapter, or the Hub cannot be reached or refuses.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pushing-") as name:
        left_out = _stage(folder, Path(name), repo_id)
        api = huggingface_hub.HfApi()
        commit = _reach(
            lambda: api.upload_folder(repo_id=repo_id, folder_path=name, commit_message="Upload by fera"),
            f"cannot push to {repo_id}",
        )
    return str(commit.commit_url), left_out


def find_adapter(path: Path) -> Path:
    """Folder of the adapter that a path means.

    Args:
        path: a run's folder, or an adapter's own.

    Raises:
        FeraError: there is none.
    """
    for folder in (path / "adapter", path):
        if any(folder.glob("*.safetensors")):
            return folder
    raise FeraError(
        f"{path} holds no adapter to push: give the folder of a finished run, or of an adapter "
        "(of a run that did not finish: checkpoints/step-.../adapter in it)"
    )


def _stage(folder: Path, target: Path, repo_id: str) -> list[str]:
    """Copy what is uploaded, made fit for strangers; returns names of what is not."""
    card = _card_of(folder)
    base = _base_of(card, folder)
    (target / CARD).write_text(card.replace(REPOSITORY, repo_id), encoding="utf-8")
    left_out = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or inside == Path(CARD):
            continue
        if path.is_symlink() or path.suffix.lower() not in _UPLOADED or any(part[0] == "." for part in inside.parts):
            left_out.append(str(inside))
            continue
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            _copy_settings(path, target / inside, base)
        elif path.name == WEIGHTS:
            _copy_weights(path, target / inside, base)
        else:
            shutil.copyfile(path, target / inside)
    return left_out


def _card_of(folder: Path) -> str:
    if (folder / CARD).is_file():
        return (folder / CARD).read_text(encoding="utf-8")
    return adapter_card(open_adapter(folder))


def _base_of(card: str, folder: Path) -> str | None:
    """The public base that the card names: what else the files name is a path of this machine."""
    try:
        base = huggingface_hub.ModelCard(card).data.to_dict().get("base_model")
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # yaml's errors, and ValueError
        raise FeraError(f"the metadata of {folder / CARD} cannot be read: {_first_line(error)}") from error
    return base if isinstance(base, str) else None


def _copy_settings(path: Path, target: Path, base: str | None) -> None:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FeraError(f"{path} is not valid JSON: {error}") from error
    target.write_text(json.dumps(_without_path(settings, base), indent=2, sort_keys=True), encoding="utf-8")


def _copy_weights(path: Path, target: Path, base: str | None) -> None:
    """Copy an adapter's weights; their metadata hold its settings once more."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        held = json.loads(metadata.get(METADATA_KEY, "{}"))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise FeraError(f"{path} cannot be read: {error}") from error
    if not isinstance(held, dict) or "config" not in held or _without_path(held["config"], base) == held["config"]:
        shutil.copyfile(path, target)
        return
    held["config"] = _without_path(held["config"], base)
    save_tensors(load_file(path), target, metadata | {METADATA_KEY: json.dumps(held, sort_keys=True)})


def _without_path(settings: Any, base: str | None) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {
        name: None if name in _NAMES_THE_BASE and value not in (base, EMOJI) else value
        for name, value in settings.items()
    }


def _reach(call: Callable[[], _T], what: str) -> _T:
    try:
        return call()
    except HfHubHTTPError as error:
        raise FeraError(f"{what}: {_first_line(error)}. Is it yours, and may your token write?") from error
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # the client raises many kinds: offline mode, no network, a cut connection
        raise FeraError(f"{what}, the Hub cannot be reached: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
