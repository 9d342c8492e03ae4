"""What pages that are served on one's own machine share: what they may load, and which posts are not even read."""

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

MAX_BODY = 16_384  # bytes
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # a link may be a password
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def refusal(request: Request) -> tuple[int, str] | None:
    """Why a post is refused before its body is read: status and reason."""
    origin = request.headers.get("origin", "")
    if origin != f"{request.url.scheme}://{request.headers.get('host', '')}":
        return 403, "posts are taken from the page's own address alone"
    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        return 415, "posts are application/json"
    length = request.headers.get("content-length", "")
    if "transfer-encoding" in request.headers or not length.isdigit():  # chunks count, whatever length is told besides
        return 411, "posts say their length"
    return (413, f"posts have at most {MAX_BODY} bytes") if int(length) > MAX_BODY else None


def unreadable(request: Request, error: RequestValidationError) -> JSONResponse:
    """The answer to a post that cannot be used, without what was sent: it may hold what JSON cannot."""
    where = ".".join(str(part) for part in error.errors()[0]["loc"][1:])
    return JSONResponse({"detail": f"{where or 'the post'} cannot be used: {error.errors()[0]['msg']}"}, 422)
