"""The page about data: pictures that are dropped in, their captions, what a check says of each, and masks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from fera.captioning.models import find_models
from fera.data.editing import Captioned, CaptionFolder
from fera.data.images import load_image
from fera.data.picture_formats import IMAGE_SUFFIXES, SOUND_SUFFIXES
from fera.errors import FeraError
from fera.support.files import replace_file
from fera.web.checks import Check, checked, read_json
from fera.web.commands import number_of, text_of
from fera.web.draft import Draft, Drafts
from fera.web.jobs import OPEN, Job, Queue
from fera.web.look import SOUNDS
from fera.web.looks import Looks, captions_now, find_folders
from fera.web.places import Places
from fera.web.rendering import asked, printed, render
from fera.web.uploads import check_name, receive, write_mask

_A_PAGE = 120
# Length to check sounds at, where none is given.
_SECONDS = "10"


@dataclass(frozen=True)
class Card:
    """A picture in the list.

    Args:
        name: of its entry.
        path: its file, as the page calls it.
        caption: as edited.
        is_changed: whether that differs from the file.
        facts: what the check said of it.
        is_bad: whether it cannot be used.
        is_picture: whether a thumbnail can be made of it.
        sound: the file, as the page calls it, where it is a sound that browsers play; empty where it is none.
        is_sound: whether it is a sound.
    """

    name: str
    path: str
    caption: str
    is_changed: bool
    facts: Sequence[str]
    is_bad: bool
    is_picture: bool
    sound: str = ""
    is_sound: bool = False


class Datasets:
    """What the page shows and asks for.

    Args:
        places: where it may be done.
        queue: takes the commands; captioning waits in the line of drawings.
    """

    def __init__(self, places: Places, queue: Queue) -> None:
        self._places = places
        self._queue = queue
        self._drafts = Drafts(queue.folder / "drafts")
        self._looks = Looks()

    def page(self, request: Request) -> Response:
        """The folders there are, and the one that was chosen."""
        name = request.query_params.get("folder", "")
        parts: dict[str, Any] = {}
        if name:
            folder = self._folder(name)
            parts = self._listed(folder, request.query_params)
        return render(
            "data.html",
            tab="data",
            root=self._places.root,
            folder=name and self._places.name(folder),
            folders=find_folders(self._places),
            models=find_models() if name else [],
            masks=name and self._places.name(self._masks(folder)),
            **({"listed": True, **parts} if name else {"listed": False}),
        )

    def rows(self, request: Request) -> Response:
        """The list of a folder alone, as searched and turned to a page."""
        folder = self._folder(asked(request, "folder"))
        return render("data_rows.html", folder=self._places.name(folder), **self._listed(folder, request.query_params))

    def mask(self, request: Request) -> Response:
        """The mask of a picture, where it has one."""
        folder = self._folder(asked(request, "folder"))
        path = self._mask_of(folder, asked(request, "name"))
        if not path.is_file() or path.is_symlink():
            raise FeraError("there is no mask yet")
        return Response(path.read_bytes(), media_type="image/png")

    async def upload(self, request: Request) -> Response:
        """Take a picture or a caption into a folder."""
        folder = await run_in_threadpool(self._folder, asked(request, "folder"))
        name = check_name(asked(request, "name"))
        try:
            return JSONResponse({"said": await receive(request.stream(), folder, name)})
        except ClientDisconnect:
            return Response(status_code=400)  # nobody is there to read it; what had come is gone

    async def save_mask(self, request: Request) -> Response:
        """Take a mask that was painted."""
        content = await request.body()
        name, text = asked(request, "name"), asked(request, "folder")

        def save() -> str:
            folder = self._folder(text)
            entry = self._looks.entry(folder, name)
            path = self._mask_of(folder, name)
            try:
                size = load_image(entry.image).size
            except ValueError as error:
                raise FeraError(f"{name} {error}") from error
            write_mask(content, path, size)
            return self._places.name(path)

        return JSONResponse({"said": f"saved as {await run_in_threadpool(save)}"})

    def make_folder(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Make an empty folder to drop pictures into."""
        path = self._places.inside(text_of(given, "folder", needed=True))
        path.mkdir(parents=True, exist_ok=True)
        return {"folder": self._places.name(path)}

    def edit(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Change one caption in the draft."""
        folder, draft = self._drafted(given)
        entry = self._looks.entry(folder, text_of(given, "name", needed=True))
        caption = " ".join(text_of(given, "caption").split())
        # Made on what the file has now: an edit that was refused for a change elsewhere is made anew.
        draft.change(_version(given), {entry.name: (entry.caption, caption)})
        return self._state(draft)

    def replace(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Find and replace in all captions, or in those that a search shows."""
        find = given.get("find")
        if not isinstance(find, str) or not find:
            raise FeraError("say what to find")
        new = given.get("replacement")
        if not isinstance(new, str):
            raise FeraError("the replacement was not sent; reload the page")
        return self._change_all(given, lambda caption: caption.replace(find, new), "has it")

    def trigger(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Put a word in front of every caption that does not have it."""
        word = " ".join(text_of(given, "word", needed=True).split())

        def put(caption: str) -> str:
            has_it = f" {word} " in f" {caption.replace(',', ' ')} "
            return caption if has_it else f"{word}, {caption}" if caption else word

        return self._change_all(given, put, "lacks it")

    def undo(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Take the last edit back, or else the last save."""
        _, draft = self._drafted(given)
        return {"said": draft.undo(_version(given)), **self._state(draft)}

    def discard(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Drop what is not saved."""
        _, draft = self._drafted(given)
        return {"said": f"dropped {draft.discard(_version(given)):,} edits", **self._state(draft)}

    def save(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Write edited captions to their files."""
        folder, draft = self._drafted(given)
        try:
            count = draft.save(_version(given), self._looks.at(folder, fresh=True))
        finally:
            self._looks.forget(folder)
        return {"said": f"saved {count:,} {'caption' if count == 1 else 'captions'}", **self._state(draft)}

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Have `fera data check` look at each picture."""
        folder = self._folder(text_of(given, "folder", needed=True))
        name = self._word(folder)
        words = ["data", "check", name, "--json", "--data.allow_missing_captions=true"]
        has_sounds = any(entry.image.suffix.lower() in SOUND_SUFFIXES for entry in self._looks.at(folder).entries)
        if has_sounds:
            words.append(f"--data.seconds={number_of(given, 'seconds', float) or _SECONDS}")
        elif resolution := number_of(given, "resolution"):
            words.append(f"--data.resolution={resolution}")
        masks = self._masks(folder)
        if not has_sounds and masks.is_dir() and any(masks.rglob("*.png")):
            words.append(f"--data.mask_path={self._word(masks)}")
        job = self._queue.add(tuple(words), "", trains=False)
        return {"job": job.id, "command": job.text}

    def caption(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Have a local model write the captions that are missing."""
        folder, draft = self._drafted(given)
        if draft.edits:
            raise FeraError("there are captions that are not saved: save or drop them first")
        model = text_of(given, "model", needed=True)
        if model not in {one.path for one in find_models()}:
            self._places.inside(model)
        words = ["data", "caption", self._word(folder), f"--model={model}"]
        if prefix := text_of(given, "prefix"):
            words.append(f"--prefix={prefix}")
        if question := text_of(given, "question"):
            words.append(f"--prompt={question}")
        job = self._queue.add(tuple(words), "", trains=False, line="draw")
        return {"job": job.id, "command": job.text}

    def white_masks(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Give each picture without a mask an all-white one, for training asks one of every picture."""
        folder = self._folder(text_of(given, "folder", needed=True))
        made = 0
        for entry in self._looks.at(folder).entries:
            path = self._mask_of(folder, entry.name)
            if entry.image.suffix.lower() in IMAGE_SUFFIXES and not path.exists():
                try:
                    size = load_image(entry.image).size
                except ValueError:
                    continue  # the check names it
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, lambda file, size=size: Image.new("L", size, 255).save(file, format="PNG"))  # type: ignore[misc]
                made += 1
        return {"said": f"made {made:,} white masks in {self._places.name(self._masks(folder))}"}

    def _change_all(self, given: Mapping[str, Any], change: Any, what: str) -> dict[str, Any]:
        folder, draft = self._drafted(given)
        search = text_of(given, "search")
        edits = draft.edits
        changes = {}
        for entry in self._looks.at(folder).entries:
            old, now = edits.get(entry.name, (entry.caption, entry.caption))
            if _matches(entry.name, now, search) and (new := change(now)) != now:
                changes[entry.name] = (old, new)
        count = draft.change(_version(given), changes)
        said = f"changed {count:,} {'caption' if count == 1 else 'captions'}" if count else f"no caption {what}"
        return {"said": said, **self._state(draft)}

    def _drafted(self, given: Mapping[str, Any]) -> tuple[Path, Draft]:
        folder = self._folder(text_of(given, "folder", needed=True))
        return folder, self._drafts.of(folder)

    def _state(self, draft: Draft) -> dict[str, Any]:
        return {"version": draft.version, "unsaved": len(draft.edits), "can_undo": draft.can_undo}

    def _listed(self, folder: Path, query: Mapping[str, str]) -> dict[str, Any]:
        """What a list shows: a page of the pictures that a search finds, and what is known of all."""
        search, only = query.get("search", "")[:1000], query.get("only", "")
        draft = self._drafts.of(folder)
        edits = draft.edits
        problem, held = "", None
        try:
            held = self._looks.at(folder)
        except FeraError as error:  # an empty folder is one to drop pictures into
            problem = str(error)
        check, job = checked(self._queue, self._word(folder))
        found = [] if held is None else self._found(held, edits, check, search, only)
        pages = max(1, math.ceil(len(found) / _A_PAGE))
        page = min(max(1, int(query.get("page", "1")) if query.get("page", "1").isdecimal() else 1), pages)
        shown = found[(page - 1) * _A_PAGE : page * _A_PAGE]
        return {
            "problem": problem,
            "cards": [self._card(entry, edits, check) for entry in captions_now(held, shown)] if held else [],
            "count": 0 if held is None else len(held.entries),
            "found": len(found),
            "uncaptioned": sum(not edits.get(e.name, ("", e.caption))[1] for e in held.entries) if held else 0,
            "notes": held.notes if held is not None else [],
            "layout": held.layout if held is not None else "",
            "can_be_edited": held is not None and held.can_be_edited,
            "page": page,
            "pages": pages,
            "search": search,
            "only": only,
            "draft": self._state(draft),
            "check": check,
            "check_job": job,
            "check_said": self._refusal(job),
            "is_checking": job is not None and job.state in OPEN,
        }

    def _refusal(self, job: Job | None) -> str:
        """Why the last check has no report; empty where it has one."""
        if job is None or job.state != "failed":
            return ""
        said = printed(self._queue, job.id)
        return "" if read_json(said) is not None or "{" in said else said[-600:]

    def _found(
        self, held: CaptionFolder, edits: Mapping[str, tuple[str, str]], check: Check | None, search: str, only: str
    ) -> list[Captioned]:
        def wanted(entry: Captioned) -> bool:
            caption = edits[entry.name][1] if entry.name in edits else entry.caption
            if not _matches(entry.name, caption, search):
                return False
            if only == "uncaptioned":
                return not caption
            if only == "changed":
                return entry.name in edits
            if only in ("bad", "small"):
                return check is not None and entry.name in (check.bad if only == "bad" else check.small)
            return True

        return [entry for entry in held.entries if wanted(entry)]

    def _card(self, entry: Captioned, edits: Mapping[str, tuple[str, str]], check: Check | None) -> Card:
        suffix = entry.image.suffix.lower()
        return Card(
            name=entry.name,
            path=self._places.name(entry.image),
            caption=edits[entry.name][1] if entry.name in edits else entry.caption,
            is_changed=entry.name in edits,
            facts=check.facts_of(entry.name) if check is not None else (),
            is_bad=check is not None and entry.name in check.bad,
            is_picture=suffix in IMAGE_SUFFIXES,
            sound=self._places.name(entry.image) if suffix in SOUNDS else "",
            is_sound=suffix in SOUND_SUFFIXES,
        )

    def _folder(self, name: str) -> Path:
        folder = self._places.inside(name)
        if not folder.is_dir():
            raise FeraError(f"there is no folder {name} any more: put it back, or choose another")
        return folder

    def _word(self, folder: Path) -> str:
        name = self._places.name(folder)
        return f"./{name}" if name.startswith("-") else name

    def _masks(self, folder: Path) -> Path:
        """Where the masks of a folder go: beside it, so that they are not taken for pictures of it."""
        beside = folder.with_name(f"{folder.name}-masks")
        try:
            return self._places.inside(beside)
        except FeraError:
            return folder / "masks"

    def _mask_of(self, folder: Path, name: str) -> Path:
        entry = self._looks.entry(folder, name)
        relative = entry.image.relative_to(folder) if entry.image.is_relative_to(folder) else Path(entry.image.name)
        return self._places.inside((self._masks(folder) / relative).with_suffix(".png"))


def _matches(name: str, caption: str, search: str) -> bool:
    return not search or search.lower() in caption.lower() or search.lower() in name.lower()


def _version(given: Mapping[str, Any]) -> int:
    version = given.get("version")
    if not isinstance(version, int):
        raise FeraError("the page was not sent whole; reload it")
    return version
