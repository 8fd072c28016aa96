"""Documentation pages that need no other host: their scripts and styles come from a package that carries them."""

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

ASSETS = "/docs/assets"
REDOC_SCRIPT = "redoc.standalone.js"
REDOC_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src blob:; frame-ancestors 'none'"
)


def add_pages(app: FastAPI, docs_url: str, redoc_url: str) -> None:
    """Swagger UI and ReDoc at these paths."""
    title = f"{app.title} - documentation"

    async def swagger(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=title,
            swagger_js_url=f"{root}{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{root}{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{root}{ASSETS}/favicon.png",
        )
        page.headers["content-security-policy"] = PAGE_POLICY
        return page

    async def redoc(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        page = get_redoc_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=title,
            redoc_js_url=f"{root}{ASSETS}/{REDOC_SCRIPT}",
            redoc_favicon_url=f"{root}{ASSETS}/favicon.png",
            with_google_fonts=False,
        )
        page.headers["content-security-policy"] = PAGE_POLICY
        return page

    app.get(docs_url, include_in_schema=False)(swagger)
    app.get(redoc_url, include_in_schema=False)(redoc)
    app.mount(ASSETS, _Assets(directory=_assets()), name="docs-assets")


class _Assets(StaticFiles):
    """The pages' scripts and styles, from the package that carries them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if path != REDOC_SCRIPT:
            return await super().get_response(path, scope)
        # It would ask another host for one picture.
        script = (_assets() / REDOC_SCRIPT).read_bytes().replace(REDOC_LOGO, b"data:image/svg+xml,")
        return Response(script, media_type="text/javascript", headers={"cache-control": "max-age=86400"})


def _assets() -> Path:
    # The package is a carrier of files; importing it would cost start-up time.
    spec = find_spec("fastapi_offline")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "static"
