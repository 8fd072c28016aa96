"""The front door of a process that serves several systems: each under its name, a start page that links them."""

from collections.abc import Mapping
from html import escape

from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from bedplate.kernel.http import Place, System
from bedplate.kernel.pages import PAGE_POLICY

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Bedplate</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; color: #1c2733 }}
li {{ margin: .8rem 0 }} code {{ background: #eef1f4; padding: .1rem .3rem; border-radius: .2rem }}
a {{ color: #0b5cad }} @media (prefers-color-scheme: dark) {{ body {{ background: #14181d; color: #dce3ea }}
code {{ background: #232a32 }} a {{ color: #7db7ee }} }}
</style>
</head>
<body>
<h1>Bedplate</h1>
<p>Every system below is served by this process.</p>
<ul>
{items}
</ul>
</body>
</html>
"""
ITEM = """<li><strong>{title}</strong> under <code>/{mount}</code><br>
{links}<a href="/{mount}/health">health</a> · <a href="/{mount}/metrics">metrics</a>
</li>"""


class Front:
    """Dispatches on the first part of the path, or on the first two of a document with several services."""

    def __init__(self, systems: Mapping[Place, tuple[System, ASGIApp]]) -> None:
        self._applications = {place.mount: application for place, (_, application) in systems.items()}
        items = [_item(place, system) for place, (system, _) in systems.items()]
        self._page = HTMLResponse(PAGE.format(items="\n".join(items)), headers={"content-security-policy": PAGE_POLICY})
        self._unknown = JSONResponse(
            {"error": "Not Found", "systems": [f"/{each}" for each in self._applications]}, 404
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first, _, rest = scope["path"].removeprefix("/").partition("/")
        mount = first
        application = self._applications.get(first)
        if application is None:
            mount = f"{first}/{rest.partition('/')[0]}"
            application = self._applications.get(mount)
        if application is not None:
            root = f"/{mount}"
            # The address as it is announced, without a slash at its end, is the system's first page too.
            path = f"{root}/" if scope["path"] == root else scope["path"]
            await application({**scope, "root_path": root, "path": path}, receive, send)
        elif scope["type"] == "http":
            await (self._unknown if first else self._page)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})


def _item(place: Place, system: System) -> str:
    pages = ({"documentation": place.docs} if place.docs else {}) | dict(system.links)
    links = [f'<a href="/{escape(place.mount)}{escape(path)}">{escape(name)}</a> · ' for name, path in pages.items()]
    return ITEM.format(title=escape(system.title), mount=escape(place.mount), links="".join(links))
