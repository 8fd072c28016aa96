"""Cabinets in each deployment."""

import pytest

from tests.modules.files.cabinet import Cabinet
from tests.world import World


@pytest.fixture
def cabinet(world: World) -> Cabinet:
    return Cabinet.of(world)
