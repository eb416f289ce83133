"""The page: addresses to answers. Every address is fixed; what is asked for is named by its query."""

import asyncio
import html
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fera.errors import FeraError
from fera.web.actions import Actions
from fera.web.datasets import Datasets
from fera.web.drawings import Drawings
from fera.web.estimates import Estimates
from fera.web.guard import Guard
from fera.web.jobs import Queue
from fera.web.pages import Pages
from fera.web.places import Places
from fera.web.rendering import render
from fera.web.takeout import TakeOut
from fera.web.thumbs import Thumbs

# Seconds between looks at the queue.
_TICK = 0.5

Answer = Callable[[Request], Response]
Do = Callable[[dict[str, Any]], dict[str, Any]]


def make_app(places: Places, queue: Queue, *, hosts: set[str], token: str | None = None) -> Starlette:
    """The page as an ASGI application.

    Args:
        places: the folders that it may touch.
        queue: its jobs.
        hosts: names that it answers to.
        token: what browsers must bring; None where only this machine reaches it.
    """
    pages = Pages(places, queue, Thumbs(queue.folder.parent / "thumbs"))
    actions = Actions(places, queue)
    drawings = Drawings(places, queue)
    data = Datasets(places, queue)
    takeout = TakeOut(places, queue)
    estimates = Estimates(places, queue)

    @asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        ticking = asyncio.create_task(_tick_on(queue))
        try:
            yield
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking

    got: dict[str, Answer] = {
        "/": pages.runs,
        "/runs/rows": pages.rows,
        "/run": pages.run,
        "/run/live": pages.live,
        "/run/charts": pages.charts,
        "/run/samples": pages.samples,
        "/run/report": pages.report,
        "/compare": pages.compare,
        "/train": pages.train,
        "/draw": drawings.page,
        "/draw/adapter": drawings.adapter,
        "/draw/live": drawings.live,
        "/draw/list": drawings.recent,
        "/data": data.page,
        "/data/rows": data.rows,
        "/data/mask": data.mask,
        "/data/view": pages.view,
        "/takeout": takeout.page,
        "/train/estimate": estimates.told,
        "/job": pages.job,
        "/picture": pages.picture,
        "/clip": pages.clip,
        "/sound": pages.sound,
        "/thumb": pages.thumb,
        "/static": pages.static,
    }
    does: dict[str, Do] = {
        **{
            name: getattr(actions, name)
            for name in ("preview", "train", "check", "resume", "stop", "report", "analyze")
        },
        "cancel": actions.cancel,
        "data-folder": data.make_folder,
        "data-edit": data.edit,
        "data-replace": data.replace,
        "data-trigger": data.trigger,
        "data-undo": data.undo,
        "data-discard": data.discard,
        "data-save": data.save,
        "data-check": data.check,
        "data-caption": data.caption,
        "data-white-masks": data.white_masks,
        "draw": drawings.draw,
        "estimate": estimates.ask,
        "export": takeout.export,
        "merge": takeout.merge,
        "push": takeout.push,
        "draw-preview": drawings.preview,
    }
    routes = [Route(path, _page(answer), methods=["GET"]) for path, answer in got.items()]
    sent = {"/data/upload": data.upload, "/data/mask": data.save_mask}
    routes += [Route(path, _sent(take), methods=["POST"]) for path, take in sent.items()]
    routes += [Route(f"/do/{name}", _action(do, queue), methods=["POST"]) for name, do in does.items()]
    return Starlette(routes=routes, lifespan=life, middleware=[Middleware(Guard, hosts=hosts, token=token)])


async def _tick_on(queue: Queue) -> None:
    while True:
        await run_in_threadpool(queue.tick)
        await asyncio.sleep(_TICK)


def _page(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def answered(request: Request) -> Response:
        try:
            return await run_in_threadpool(answer, request)
        except FeraError as error:
            text = str(error)
        except OSError as error:
            text = f"{error.filename or 'a file'}: {error.strerror or error}. Look at the folder, then reload"
        if request.url.path.count("/") > 1:  # a part of a page
            return HTMLResponse(f'<p class="notice bad" role="alert">{html.escape(text)}</p>', 404)
        return render("problem.html", 404, text=text, tab="")

    return answered


def _action(do: Do, queue: Queue) -> Callable[[Request], Awaitable[Response]]:
    async def answered(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return JSONResponse({"error": "that was no JSON object; reload the page"}, 400)

        async def done() -> Response:
            told = await run_in_threadpool(do, body)
            await run_in_threadpool(queue.tick)
            return JSONResponse(told)

        return await _or_a_sentence(done())

    return answered


def _sent(take: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def answered(request: Request) -> Response:
        return await _or_a_sentence(take(request))

    return answered


async def _or_a_sentence(answer: Awaitable[Response]) -> Response:
    try:
        return await answer
    except FeraError as error:
        return JSONResponse({"error": str(error)}, 400)
    except OSError as error:
        reason = f"{error.filename or 'a file'}: {error.strerror or error}"
        return JSONResponse({"error": f"{reason}. Make room or look at the folder; what was there is as it was"}, 507)
