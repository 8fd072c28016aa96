"""What everything is compared with: a bare FastAPI JSON route, and for the load generator itself a raw ASGI answer."""

from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

app = FastAPI()


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    """The least that an ASGI server can be asked to do."""
    if scope["type"] != "http":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"20")]})
    await send({"type": "http.response.body", "body": b'{"status":"healthy"}'})
