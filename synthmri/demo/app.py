"""The page to play with: a prompt, a seed, eight slices, and what the shield says of each. For one's own machine.

Real slices stay where they are: of the nearest training slice a number leaves, and every picture is drawn by the model.
"""

import base64
import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage
from starlette.middleware.trustedhost import TrustedHostMiddleware

from synthmri import local_web
from synthmri.errors import UserError
from synthmri.evaluation import shield
from synthmri.reporting import plots

PAGE = Path(__file__).parent / "page"
TYPES = {"page.js": "text/javascript", "page.css": "text/css"}
HOSTS = ("127.0.0.1", "localhost")
EIGHT = 8
MOST_STEPS = 100  # beyond it, a wait without more to see
MOST_SEED = 10**15  # JavaScript holds whole numbers up to 2^53
HEADERS = local_web.HEADERS | {
    "Content-Security-Policy": local_web.HEADERS["Content-Security-Policy"].replace("img-src", "img-src data:")
}


class Asked(BaseModel):
    """What the page sends. Words are those of training, or "" to leave one out; level: cm below the vertex, or none."""

    model_config = ConfigDict(extra="forbid", strict=True)
    contrast: str = Field(default="", max_length=60)
    plane: str = Field(default="", max_length=60)
    label: str = Field(default="", max_length=60)
    level: int | None = Field(default=None, ge=0, le=30)
    seed: int = Field(ge=0, le=MOST_SEED)
    steps: int = Field(ge=1, le=MOST_STEPS)


def create(
    draw: Callable[[str, list[int], int], np.ndarray],
    prompt: Callable[[Asked], str],
    known: shield.Known,
    *,
    words: dict[str, list],
    steps: int,
    simulated: bool,
    refused: bool,
) -> FastAPI:
    """The application. draw: (text, seeds, steps) -> uint8 (N, P, H, W), images and, where P is 2, masks of lesions.

    prompt: the text of what is asked for.

    words: contrast, plane, label and level -> what training slices have, which is what may be asked for; steps: what
    the page begins with; simulated: whether the training people are; refused: whether the gate refuses the model.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestValidationError, local_web.unreadable)
    pages = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)
    text = pages.get_template("page.html").render(
        words=words, steps=min(steps, MOST_STEPS), most_steps=MOST_STEPS, most_seed=MOST_SEED,
        simulated=simulated, refused=refused, bound=known.most_alike,
    )  # fmt: skip
    busy = threading.Lock()

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(text)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)  # browsers ask for one

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in TYPES:
            raise HTTPException(404, "not found")
        return Response((PAGE / name).read_bytes(), media_type=TYPES[name])

    @app.post("/draw")
    def eight(asked: Asked) -> dict:
        for field, there in words.items():
            value = getattr(asked, field)
            if value not in (None, "", *there):
                raise HTTPException(422, f"{field}: no training slice has {value!r}; choose of {_list(there)}, or none")
        if not busy.acquire(blocking=False):
            raise HTTPException(429, "it is drawing for another window; try again in a moment")
        try:
            seeds, said = list(range(asked.seed, asked.seed + EIGHT)), prompt(asked)
            images, *masks = draw(said, seeds, asked.steps).swapaxes(0, 1)
            found = shield.judge(images, known)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        finally:
            busy.release()
        slices = [
            {
                "seed": seed,
                "picture": _picture(image),
                "likeness": round(float(likeness), 3),
                "alike": bool(alike),
                "implausible": bool(odd),
            }
            for seed, image, likeness, alike, odd in zip(seeds, images, *found, strict=True)
        ]
        for each, image, mask in zip(slices, images, *masks, strict=True) if masks else ():
            each["lesions"] = int(ndimage.label(mask)[1])
            each["outlined"] = _picture(plots.outlined(image[None], mask[None])[0])
        return {"prompt": said, "slices": slices}

    @app.middleware("http")
    async def guard(request: Request, call_next):
        why = local_web.refusal(request) if request.method == "POST" else None
        response = JSONResponse({"detail": why[1]}, why[0]) if why else await call_next(request)
        response.headers.update(HEADERS)
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS), www_redirect=False)  # before all else
    return app


def _list(values: list) -> str:
    return ", ".join(map(str, values)) or "nothing"


def _picture(image: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
