"""Dev-PyNode on a port of its own, for clients that need a real connection."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import world as worlds
from tests.fakes.model_server import ModelServer
from tests.pynode.talking import Served, serving
from tests.world import World


@pytest.fixture
async def served(world: World) -> AsyncIterator[Served]:
    """In each deployment, with the offline provider."""
    async with serving(world) as running:
        yield running


@pytest.fixture
async def modelled(tmp_path: Path, sqlite_template: Path, upstream: ModelServer) -> AsyncIterator[Served]:
    """In front of a model server, in one process."""
    settings = {"openai_api_key": "key-of-the-installation", "openai_base_url": upstream.base_url}
    async with (
        worlds.embedded(tmp_path, sqlite_template, rate_limit_enabled=False, **settings) as world,
        serving(world) as running,
    ):
        yield running
