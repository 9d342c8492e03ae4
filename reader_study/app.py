"""The web page of a reader study. Every route but the start page and the static files needs a rater's token.

Safe by construction: images come from a dictionary of the packet's names and never from a path; the key is not here to
be served; a post needs the page's own origin, and nothing of it is read before its token and its length are known; a
Host that is not expected is refused (DNS rebinding); the page may load nothing from elsewhere and run no inline script.
"""

from pathlib import Path
from typing import Annotated, Literal

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from reader_study import design
from reader_study.packet import Packet
from reader_study.store import Store, Taken
from synthmri import local_web

PAGE = Path(__file__).parent / "page"
TYPES = {".js": "text/javascript", ".css": "text/css"}


class SignIn(BaseModel):
    """A pseudonym: short, and nothing that a spreadsheet or a page could take for more than a word."""

    model_config = ConfigDict(extra="forbid", strict=True)
    pseudonym: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{1,19}$")


class Undo(BaseModel):
    """How many ratings the rater sees as done: the last of these is withdrawn, however often it is asked."""

    model_config = ConfigDict(extra="forbid", strict=True)
    done: int = Field(ge=1, le=1_000_000)


class Answer(BaseModel):
    """What the page sends of a trial, whatever the design."""

    model_config = ConfigDict(extra="forbid", strict=True)
    position: int = Field(ge=0, le=1_000_000)
    image: str = Field(pattern=r"^[0-9a-f]{16}(-[0-9a-f]{16})?$")
    seconds: float = Field(ge=0, le=86_400, allow_inf_nan=False)
    comment: str = Field(max_length=500)

    @field_validator("comment")
    @classmethod
    def _one_line(cls, value: str) -> str:
        return " ".join("".join(c if c.isprintable() else " " for c in value).split())


class Rating(Answer):
    """Of one image."""

    realism: int = Field(ge=1, le=5)
    verdict: Literal["real", "synthetic"]
    plausibility: int = Field(ge=1, le=5)
    tags: list[Literal[*design.TAGS.values()]] = Field(max_length=len(design.TAGS))


class Choice(Answer):
    """Which of two images is the real one."""

    chosen: Literal["left", "right"]


ANSWERS = {"rating": Rating, "forced_choice": Choice}
OWN = {  # columns of the page on which raters see what they have answered: heading -> column
    "rating": {
        "realism": "realism", "verdict": "verdict", "anatomy": "plausibility", "artefacts": "tags",
        "comment": "comment",
    },
    "forced_choice": {"the real one": "chosen", "comment": "comment"},
}  # fmt: skip


def create(packet: Packet, store: Store, hosts: list[str]) -> FastAPI:
    """The application. hosts: names under which the page may be opened, without port."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestValidationError, local_web.unreadable)
    pages = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined)

    known = {
        "design": packet.design, "questions": design.QUESTIONS, "tags": design.TAGS, "simulated": packet.simulated,
        "controls": packet.controls,
    }  # fmt: skip
    Given = ANSWERS[packet.design]

    def rater(request: Request) -> dict:
        return request.state.rater  # of the token in the path: `guard`

    def signed_in(who: Annotated[dict, Depends(rater)]) -> dict:
        if who["pseudonym"] is None:
            raise HTTPException(403, "sign in first")
        return who

    Rater = Annotated[dict, Depends(rater)]
    SignedIn = Annotated[dict, Depends(signed_in)]

    def state(who: dict) -> dict:
        order = packet.orders[who["slot"]]
        done = {row["position"] for row in store.ratings(who["slot"])}
        left = [i for i in range(len(order)) if i not in done]
        return {
            "pseudonym": who["pseudonym"],
            "done": len(done),
            "total": len(order),
            "position": left[0] if left else None,
            "image": order[left[0]][0] if left else None,
            "next": order[left[1]][0] if len(left) > 1 else None,  # to be loaded meanwhile
        }

    @app.get("/")
    def root() -> HTMLResponse:
        return HTMLResponse(pages.get_template("root.html").render())

    @app.get("/favicon.ico")
    def icon() -> Response:
        return Response(status_code=204)  # browsers ask for one

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        files = {file.name: file for file in PAGE.iterdir() if file.suffix in TYPES}
        if name not in files:
            raise HTTPException(404, "not found")
        return Response(files[name].read_bytes(), media_type=TYPES[files[name].suffix])

    @app.get("/r/{token}/")
    def page(who: Rater) -> HTMLResponse:
        order = packet.orders[who["slot"]]
        text = pages.get_template("page.html").render(**known, total=len(order))
        return HTMLResponse(text)

    @app.get("/r/{token}/state")
    def get_state(who: Rater) -> dict:
        return state(who) if who["pseudonym"] else {"pseudonym": None}

    @app.post("/r/{token}/sign-in")
    def sign_in(who: Rater, body: SignIn) -> dict:
        try:
            store.sign_in(who["slot"], body.pseudonym)
        except Taken:
            raise HTTPException(409, "this pseudonym is taken; choose another") from None
        return state(who | {"pseudonym": body.pseudonym})

    @app.post("/r/{token}/ratings")
    def rate(who: SignedIn, body: Given) -> dict:
        order = packet.orders[who["slot"]]
        if body.position >= len(order) or order[body.position][0] != body.image:
            raise HTTPException(409, "this image is not at this place of your list; reload the page")
        answers = body.model_dump()
        if "tags" in answers:
            answers["tags"] = ";".join(tag for tag in design.TAGS.values() if tag in body.tags)
        try:
            store.add(who["slot"], body.position, body.image, answers)
        except Taken:
            raise HTTPException(409, "this image has been rated already, in another window; reload the page") from None
        return state(who)

    @app.post("/r/{token}/undo")
    def undo(who: SignedIn, body: Undo) -> dict:
        try:
            row = store.undo(who["slot"], body.done)
        except Taken:
            raise HTTPException(409, "another window has gone on; reload the page") from None
        if row is None:
            raise HTTPException(409, "there is nothing to undo")
        answers = {name: row[name] for name in store.answers}
        if "tags" in answers:
            answers["tags"] = [tag for tag in answers["tags"].split(";") if tag]
        return state(who) | {"answers": answers}

    @app.get("/r/{token}/ratings")
    def own_ratings(who: SignedIn) -> HTMLResponse:
        rows = store.ratings(who["slot"])
        return HTMLResponse(pages.get_template("ratings.html").render(who=who, rows=rows, columns=OWN[packet.design]))

    @app.get("/r/{token}/images/{name}")
    def image(who: SignedIn, name: str) -> Response:
        if name not in packet.images:
            raise HTTPException(404, "not found")
        return Response(packet.images[name], media_type="image/png")

    @app.middleware("http")
    async def guard(request: Request, call_next):
        refused = local_web.refusal(request) if request.method == "POST" else None
        # Here and not in `rater`, before which the framework has read the body of a post.
        if not refused and request.scope["path"].startswith("/r/"):
            token = request.scope["path"].split("/")[2]
            request.state.rater = await run_in_threadpool(store.rater, token)
            refused = None if request.state.rater else (404, "this link is not known; ask for yours")
        response = JSONResponse({"detail": refused[1]}, refused[0]) if refused else await call_next(request)
        response.headers.update(local_web.HEADERS)
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)  # before all else
    return app
