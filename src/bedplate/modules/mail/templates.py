"""Templates: what is said in a mail, as text and as HTML. They are loaded and compiled once."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bedplate.modules.identity.public import User

if TYPE_CHECKING:
    from jinja2 import Environment, Template

APPLICATION = "Bedplate"
MAXIMUM_GREETED = 40
PLAIN_NAME = re.compile(r"\w+(?:[ '-]\w+){0,3}")


def render(name: str, user: User, variables: Mapping[str, object]) -> tuple[str, str]:
    """The text and the HTML of a mail to a user."""
    known = {"name": _greeted(user), "application": APPLICATION, **variables}
    text, html = _pair(name)
    return text.render(known), html.render(known)


@cache
def _pair(name: str) -> "tuple[Template, Template]":
    return _environment().get_template(f"{name}.txt"), _environment().get_template(f"{name}.html")


@cache
def _environment() -> "Environment":
    # Loaded with the first mail: a process starts a tenth sooner.
    from jinja2 import FileSystemLoader, StrictUndefined, select_autoescape  # noqa: PLC0415
    from jinja2.sandbox import SandboxedEnvironment  # noqa: PLC0415

    return SandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(("html",)),
        undefined=StrictUndefined,
        auto_reload=False,
    )


def _greeted(user: User) -> str:
    # Whoever signs up chooses it, and the reader may be somebody else: no room for links and messages.
    name = user.first_name or user.name or user.username or ""
    return f" {name}" if len(name) <= MAXIMUM_GREETED and PLAIN_NAME.fullmatch(name) else ""
