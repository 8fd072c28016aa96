"""Shops in each deployment, with orders in each store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import WITH_DOCUMENTS, deployed
from tests.modules.orders.shop import Shop
from tests.world import World


@pytest.fixture(params=WITH_DOCUMENTS)
async def world(request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path) -> AsyncIterator[World]:
    async with deployed(request, tmp_path, sqlite_template) as opened:
        yield opened


@pytest.fixture
def shop(world: World) -> Shop:
    return Shop.of(world)
