"""Running the product: maintenance, status, audit; through the facade in each deployment."""

import asyncio
from pathlib import Path

import psutil
import pytest

from bedplate import compose
from bedplate.kernel.errors import InvalidField
from bedplate.kernel.ids import new_id
from bedplate.kernel.settings import Settings
from bedplate.modules.identity.public import Registration, Users
from bedplate.modules.ops.public import Operations
from tests import factories
from tests.factories import PASSWORD, TurnableClock
from tests.world import SECRET, World


@pytest.fixture
def operations(world: World) -> Operations:
    return world.front.get(Operations)


async def test_nobody_has_touched_the_switch_yet(operations: Operations) -> None:
    mode = await operations.get_maintenance()
    assert (mode.enabled, mode.message, mode.updated_at) == (False, "System maintenance in progress", None)


async def test_maintenance_is_seen_at_once_and_keeps_its_message(operations: Operations) -> None:
    admin = new_id()
    assert not (await operations.get_maintenance()).enabled
    on = await operations.set_maintenance(True, "  Back at noon ", admin)
    assert (on.enabled, on.message) == (True, "Back at noon")
    assert await operations.get_maintenance() == on
    off = await operations.set_maintenance(False, None, admin)
    assert (off.enabled, off.message) == (False, "Back at noon")
    assert await operations.get_maintenance() == off


async def test_maintenance_outlives_the_process_and_holds_in_every_other(world: World) -> None:
    await world.runtime.get(Operations).set_maintenance(True, "Back at noon", new_id())
    async with compose.running(world.settings, world.clock, deliver=False) as another:
        assert (await another.get(Operations).get_maintenance()).enabled
        await another.get(Operations).set_maintenance(False, None, new_id())
    assert not (await world.front.get(Operations).get_maintenance()).enabled


async def test_while_the_modules_are_away_every_request_is_told_to_come_back(tmp_path: Path) -> None:
    elsewhere = dict.fromkeys(compose.FACADES, "http://127.0.0.1:1")
    settings = Settings(_env_file=None, secret=SECRET, data=tmp_path, elsewhere=elsewhere)
    async with compose.running(settings, TurnableClock()) as front:
        world = World(settings, TurnableClock(), front, front)
        pantstack, cobalt = world.client("pantstack"), world.client("cobalt")
        for request in (
            pantstack.get("/api/v1/users/usr_1"),  # the gate asks for maintenance first
            pantstack.post("/api/v1/users", json={"email": "a@example.com", "name": "A", "password": PASSWORD}),
            pantstack.post("/api/v1/auth/login", json={"email": "a@example.com", "password": PASSWORD}),
        ):
            answer = await request
            assert (answer.status_code, answer.json()["error"]) == (503, "SYS_002")
        login = await cobalt.post("/api/auth/login", json={"username": "a", "password": PASSWORD})
        assert login.status_code == 503
        assert (await pantstack.get("/health")).status_code == 200
        ready = await pantstack.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "not ready", "checks": {"modules": False}})
        await world.aclose()


async def test_while_postgresql_is_away_it_is_alive_and_not_ready(tmp_path: Path) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    settings = Settings(_env_file=None, secret=SECRET, data=tmp_path, database_url=nowhere)
    async with compose.running(settings, TurnableClock(), deliver=False) as runtime:
        world = World(settings, TurnableClock(), runtime, runtime)
        client = world.client("pantstack")
        assert (await client.get("/health")).status_code == 200
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["checks"]) == (503, {"database": False})
        answer = await client.get("/api/v1/users/usr_1")
        assert (answer.status_code, answer.json()["error"]) == (503, "SYS_002")
        await world.aclose()


async def test_many_who_switch_at_once_leave_one_state(operations: Operations) -> None:
    await operations.set_maintenance(False, None, new_id())
    await asyncio.gather(*(operations.set_maintenance(True, f"Number {n}", new_id()) for n in range(5)))
    mode = await operations.get_maintenance()
    assert mode.enabled
    newest = (await operations.audit_log(limit=1))[0]
    assert newest.action == "maintenance.start"


async def test_the_very_first_switch_may_be_made_twice_at_once(operations: Operations) -> None:
    modes = await asyncio.gather(*(operations.set_maintenance(True, None, new_id()) for _ in range(5)))
    assert all(mode.enabled for mode in modes)


async def test_a_message_is_a_sentence_of_500_characters_at_most(operations: Operations) -> None:
    for message in ("", "   ", "x" * 501):
        with pytest.raises(InvalidField):
            await operations.set_maintenance(True, message, new_id())
    assert (await operations.set_maintenance(True, "x" * 500, new_id())).enabled


async def test_every_switch_is_in_the_audit_log(operations: Operations) -> None:
    admin = new_id()
    await operations.set_maintenance(True, "Back at noon", admin)
    await operations.set_maintenance(False, None, admin)
    end, start = await operations.audit_log()
    assert (start.action, start.actor_id, start.subject) == ("maintenance.start", admin, "system")
    assert start.details == {"message": "Back at noon"}
    assert end.action == "maintenance.end"


async def test_acts_of_administrators_are_in_the_audit_log_newest_first(world: World, operations: Operations) -> None:
    users = world.front.get(Users)
    admin = await users.create_admin(Registration(factories.email(), PASSWORD))
    user = await users.register(Registration(factories.email(), PASSWORD))
    for act in (users.disable_user, users.enable_user, users.delete_user):
        world.clock.advance(1)
        await act(user.id, admin.id)
    world.clock.advance(1)
    await world.deliver()
    entries = await operations.audit_log()
    assert [(each.action, each.subject, each.actor_id) for each in entries] == [
        ("user.delete", user.id, admin.id),
        ("user.enable", user.id, admin.id),
        ("user.disable", user.id, admin.id),
        ("user.appoint-admin", admin.id, None),
    ]
    assert [each.at for each in entries] == sorted((each.at for each in entries), reverse=True)
    assert [each.action for each in await operations.audit_log(limit=1, offset=1)] == ["user.enable"]


async def test_an_act_that_failed_is_not_in_the_audit_log(world: World, operations: Operations) -> None:
    users = world.front.get(Users)
    with pytest.raises(Exception, match="User not found"):
        await users.disable_user(new_id(), new_id())
    await world.deliver()
    assert await operations.audit_log() == []


async def test_the_status_has_real_figures(operations: Operations) -> None:
    await operations.get_maintenance()
    status = await operations.system_status()
    [service] = status.services
    own = psutil.Process()
    assert (service.name, service.status) == ("api", "running")
    assert own.memory_info().rss / 2 < service.memory < own.memory_info().rss * 2
    assert service.uptime >= 0
    assert service.cpu >= 0
    assert status.database_connected
    assert 0 <= status.database_latency_ms < 5000
    assert status.cache_connected
    assert 0 <= status.cache_hit_rate <= 1


async def test_the_hit_rate_rises_when_the_cache_is_of_use(world: World, operations: Operations) -> None:
    for _ in range(20):
        await operations.get_maintenance()
    assert (await operations.system_status()).cache_hit_rate > 0.5


async def test_a_server_that_is_away_is_told_in_the_status(tmp_path: Path, empty_postgres: str) -> None:
    from tests import world as worlds

    async with worlds.on_servers(tmp_path, empty_postgres, "redis://127.0.0.1:1/0") as world:
        status = await world.front.get(Operations).system_status()
        assert (status.database_connected, status.cache_connected) == (True, False)
