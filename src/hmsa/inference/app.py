"""One process that is a web page and an HTTP API: an image in; label, overlay and `view` page out.

Uploads stay in memory and are gone with the answer. One image at a time is predicted.
"""

from __future__ import annotations

import asyncio
import copy
import io
import math
import socket
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware

from .. import __version__
from ..checkpoint import shipped
from ..config.options import Compute, scale_list, tile_side
from ..data.images import open_pillow, read_image
from ..model import ordered
from ..report.page import render
from ..report.pictures import palette_png, png_bytes
from ..runs import InputError, say
from ..runs.errors import as_input_error
from .predictor import Predictor
from .tiles import Gate
from .viewer import view_item, view_page

NAME = Path("upload")
KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
Wanted = Literal["label", "overlay", "view"]
_SCALES = 5  # of a request, at most
_WORK = 4  # pixels of an image at its finest scale, at most, as a multiple of the largest image's


class Limits(NamedTuple):
    """Of one request, but for `queue`: requests that are being read, waiting or predicted."""

    megabytes: float = 20
    megapixels: float = 12
    seconds: float = 120
    queue: int = 8


class Answer(BaseModel):
    """What was predicted; shares are in 0..1. What was not wanted is null."""

    network: str
    width: int
    height: int
    seconds: float  # of prediction, without waiting
    confidence: float  # mean over the pixels
    classes: dict[str, float]  # name -> share of the pixels
    label: str | None = None  # base64 of a palette PNG of class indices
    overlay: str | None = None  # base64 of a JPEG
    view: str | None = None  # HTML, as `hmsa view` writes it


class Service:
    """Networks by name, the first of which is the default; and the requests to them."""

    def __init__(self, networks: Mapping[str, Predictor], limits: Limits) -> None:
        self.networks, self.limits, self.busy = networks, limits, 0
        self.worker = ThreadPoolExecutor(1, "predict")

    def page(self) -> HTMLResponse:
        """The page for people."""
        scales = {name: each.scales for name, each in self.networks.items()}
        return HTMLResponse(render("app.html.j2", networks=scales, limits=self.limits))

    async def predict(
        self,
        request: Request,
        network: Annotated[str | None, Query(description="default: the first one")] = None,
        scales: Annotated[str | None, Query(description="such as 0.5,1,2")] = None,
        budget: Annotated[float | None, Query(
            ge=0, le=1, description="share of the image that scales above 1 run on")] = None,
        tile: Annotated[str, Query(description="auto, none or pixels")] = "auto",
        want: Annotated[Sequence[Wanted], Query(description="once for each")] = ("label",),
    ) -> Response:  # fmt: skip
        """Predict the PNG, JPEG or WebP image that is the body of the request."""
        if self.busy >= self.limits.queue:
            raise HTTPException(503, "too many requests wait; try later", {"Retry-After": "5"})
        self.busy += 1
        try:
            async with asyncio.timeout(self.limits.seconds):
                content = await self._read(request)
                name = network or next(iter(self.networks))
                predictor = self._predictor(name, scales, budget, tile, _pixels(content))
                work = partial(_answer, content, name, predictor, want)
                answer = await asyncio.wrap_future(self.worker.submit(work))
        except TimeoutError:
            raise HTTPException(504, f"not done after {self.limits.seconds:g} seconds") from None
        except InputError as error:
            raise HTTPException(422, str(error)) from None
        finally:
            self.busy -= 1
        return Response(answer, media_type="application/json")

    async def _read(self, request: Request) -> bytes:
        most, content = self.limits.megabytes * 1e6, bytearray()
        async for part in request.stream():
            content += part
            if len(content) > most:
                raise HTTPException(413, f"more than {self.limits.megabytes:g} MB")
        return bytes(content)

    def _predictor(
        self, name: str, scales: str | None, budget: float | None, tile: str, pixels: int
    ) -> Predictor:
        """The network with the settings of a request for an image of so many pixels."""
        if name not in self.networks:
            raise InputError(f"no network {name!r} here; known are {', '.join(self.networks)}")
        if pixels > (most := self.limits.megapixels * 1e6):
            raise HTTPException(413, f"more than {self.limits.megapixels:g} megapixels")
        predictor = copy.copy(self.networks[name])  # which shares weights and backend
        with as_input_error():
            predictor.tile = tile_side(tile)
            predictor.scales = ordered(scale_list(scales)) if scales else predictor.scales
        finest = math.sqrt(_WORK * most / pixels)
        if len(predictor.scales) > _SCALES or max(predictor.scales) > finest:
            raise InputError(f"scales: at most {_SCALES}, and up to {finest:.2g} for this image")
        predictor.gate = None if budget is None else Gate(budget)
        return predictor


def _pixels(content: bytes) -> int:
    """Of an image, by its header."""
    if not content.startswith(tuple(KINDS)):
        raise HTTPException(415, "the body is no PNG, JPEG or WebP image")
    with open_pillow(NAME, content) as image:
        return image.width * image.height


def _answer(content: bytes, name: str, predictor: Predictor, want: Sequence[Wanted]) -> str:
    """The JSON of an `Answer`."""
    image, began = read_image(NAME, content, predictor.stretch), time.monotonic()
    view = "view" in want
    made = predictor(image, detail=view, probabilities=view)
    card, answer = predictor.model.card, dict[str, Any]()
    if "label" in want:
        answer["label"] = b64encode(png_bytes(palette_png(made.label, made.colours)))
    if "overlay" in want:
        made.overlay().save(stream := io.BytesIO(), "JPEG", quality=92)
        answer["overlay"] = b64encode(stream.getvalue())
    if view:
        items = [view_item("image", image, made)]
        answer["view"] = view_page(name, items, card, predictor.scales, made.palette)
    shares = {row["class"]: row["share"] for row in made.areas()}
    return Answer(
        network=name, width=image.shape[1], height=image.shape[0], **answer,
        seconds=time.monotonic() - began, confidence=float(made.confidence8.mean()) / 255,
        classes=dict.fromkeys(card.names, 0.0) | shares,
    ).model_dump_json()  # fmt: skip


def make_app(networks: Mapping[str, Predictor], limits: Limits, local: bool = True) -> FastAPI:
    """The ASGI application. local: answer only those that ask for this machine by name."""
    service = Service(networks, limits)
    # The documentation pages of FastAPI would load scripts from elsewhere; /openapi.json stays
    app = FastAPI(title="hmsa", version=__version__, docs_url=None, redoc_url=None)
    if local:
        hosts = ["localhost", "127.0.0.1", "[::1]"]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    image = {"schema": {"type": "string", "format": "binary"}}
    refusals = {413: "too large", 415: "no image", 503: "too many requests", 504: "too slow"}
    app.add_api_route("/", service.page, include_in_schema=False)
    app.add_api_route(
        "/predict", service.predict, methods=["POST"],
        responses={200: {"model": Answer}, **{n: {"description": d} for n, d in refusals.items()}},
        openapi_extra={"requestBody": {
            "required": True, "content": dict.fromkeys(KINDS.values(), image)}},
    )  # fmt: skip
    return app


def serve(
    checkpoints: Sequence[str], host: str, port: int, limits: Limits, compute: Compute
) -> None:
    """Answer until it is stopped. Raises InputError if it cannot listen there.

    checkpoints: default: the networks that come with hmsa and may be chosen unnamed.
    """
    if not checkpoints:
        cards = {name: shipped.read_card(shipped.FOLDER / name) for name in shipped.names()}
        checkpoints = [name for name, card in cards.items() if "look" in card["about"]]
    networks = {str(each): Predictor.load(each, **vars(compute)) for each in checkpoints}
    for name, predictor in networks.items():
        if predictor.model.channels != 3:
            raise InputError(f"{name} takes {predictor.model.channels} bands; uploads have 3")
        predictor(np.zeros((256, 256, 3), np.uint8))  # so that the first answer waits for nothing
    try:
        local = host == "localhost" or ip_address(host).is_loopback
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot listen on {host}, port {port}: {error}; name another") from None
    place = f"[{host}]" if ":" in host else host
    say(f"http://{place}:{listening.getsockname()[1]}/, until Ctrl-C")
    config = uvicorn.Config(make_app(networks, limits, local), log_level="warning")
    uvicorn.Server(config).run([listening])
