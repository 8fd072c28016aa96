"""The composition root: builds the modules, here or elsewhere, and the systems on them.

`shape.py` says which modules run in a process, `databases.py` gets their databases ready, `runtime.py` builds them,
`serving.py` puts systems on top.
"""

from bedplate.compose.databases import database_urls, may_have_several_workers, prepare, upgrade
from bedplate.compose.runtime import Runtime, listens, running
from bedplate.compose.serving import (
    INTERNAL,
    NAMES,
    PLACES,
    Process,
    Served,
    another_port,
    application,
    blueprint,
    from_environment,
    served_by,
    system,
    to_environment,
)
from bedplate.compose.shape import FACADES, LISTENS, TOPICS, Shape, shape_of

__all__ = [
    "FACADES",
    "INTERNAL",
    "LISTENS",
    "NAMES",
    "PLACES",
    "Process",
    "Runtime",
    "Served",
    "TOPICS",
    "Shape",
    "another_port",
    "application",
    "blueprint",
    "database_urls",
    "from_environment",
    "listens",
    "may_have_several_workers",
    "prepare",
    "running",
    "served_by",
    "shape_of",
    "system",
    "to_environment",
    "upgrade",
]
