"""The composition root: what the shape of a deployment says of the modules is true of them."""

from typing import Any

import pytest

from bedplate import compose
from bedplate.compose.shape import CALLS, GROUPS, HOSTS, TOPICS
from bedplate.kernel.events import Event
from bedplate.kernel.settings import OperatorError, Settings
from tests.world import SECRET, World

BROKER = "redis://127.0.0.1:1/0"


def settings(*elsewhere: str, **more: Any) -> Settings:
    places = {unit: f"http://127.0.0.1:{number + 3101}" for number, unit in enumerate(elsewhere)}
    return Settings(_env_file=None, secret=SECRET, elsewhere=places, **more)


@pytest.mark.parametrize("world", ["sqlite"], indirect=True)
async def test_every_listener_is_known_to_the_shape_and_the_other_way_round(world: World) -> None:
    assert compose.listens(world.runtime) == {unit: set(events) for unit, events in compose.LISTENS.items()}


def test_every_event_that_is_published_has_a_module_at_home() -> None:
    product = [event for event in Event.known.values() if event.__module__.startswith("bedplate.")]
    assert {event.topic for event in product} == set(TOPICS.values())
    for event in product:
        unit = next(unit for unit, topic in TOPICS.items() if topic == event.topic)
        assert event.__module__ == f"bedplate.modules.{unit}.events"


def test_every_module_has_a_group_and_a_home() -> None:
    assert set(GROUPS) == set(compose.FACADES) == set(compose.LISTENS) | {"identity"}
    assert sorted(unit for units in HOSTS.values() for unit in units) == sorted(compose.FACADES)


def test_without_a_broker_everything_runs_here_or_nothing() -> None:
    assert compose.shape_of(None, settings()).here == set(compose.FACADES)
    for name in HOSTS:
        assert compose.shape_of(name, settings()).here == set(compose.FACADES)
    everything = settings(*compose.FACADES)
    same = everything.model_copy(update={"elsewhere": dict.fromkeys(compose.FACADES, "http://127.0.0.1:1")})
    assert compose.shape_of("cobalt", same).here == frozenset()
    for wrong in (everything, settings("identity")):
        with pytest.raises(OperatorError, match="to the same address, or none; or set BROKER_URL"):
            compose.shape_of(None, wrong)


@pytest.mark.parametrize("name", HOSTS)
def test_with_a_broker_a_service_has_its_own_modules_and_is_told_where_the_others_are(name: str) -> None:
    called = [unit for unit in CALLS[name] if unit not in HOSTS[name]]
    shape = compose.shape_of(name, settings(*called, broker_url=BROKER))
    assert shape.here == set(HOSTS[name])
    assert set(shape.elsewhere) == set(called)
    for missing in called:
        some = [unit for unit in called if unit != missing]
        with pytest.raises(OperatorError, match=f"{name} needs BEDPLATE_ELSEWHERE__{missing.upper()}"):
            compose.shape_of(name, settings(*some, broker_url=BROKER))
    with pytest.raises(OperatorError, match=f"{name} is where {HOSTS[name][0]} runs"):
        compose.shape_of(name, settings(HOSTS[name][0], broker_url=BROKER))


def test_who_has_to_hear_and_who_has_to_listen_fit_together() -> None:
    """Nobody is waited for who does not read, and nobody reads what is not kept for him."""
    shapes = {
        name: compose.shape_of(
            name, settings(*(unit for unit in CALLS[name] if unit not in HOSTS[name]), broker_url=BROKER)
        )
        for name in HOSTS
    }
    readers = {
        (topic, GROUPS[unit]) for shape in shapes.values() for unit in shape.here for topic in shape.from_afar(unit)
    }
    homes = {TOPICS[unit]: name for name, units in HOSTS.items() for unit in units if unit in TOPICS}
    awaited = {(topic, group) for topic, name in homes.items() for group in shapes[name].groups(topic)}
    assert readers == awaited
    assert ("payment_events", "order-service") in readers
    assert ("user_events", "operations") not in readers, "it is at home with the users"


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(OperatorError, match="BEDPLATE_ELSEWHERE__ORDRES: there is no such module"):
        compose.shape_of(None, settings("ordres"))


def test_pynode_listens_on_both_documented_ports_unless_one_is_chosen() -> None:
    settings = Settings(_env_file=None)
    ports = [each.port for each in compose.served_by("pynode", settings)]
    assert ports == [3000, 3001]
    assert [each.option for each in compose.served_by("pynode", settings)] == ["--port", "WS_PORT"]
    elsewhere = settings.model_copy(update={"ws_port": 3900})
    assert [each.port for each in compose.served_by("pynode", elsewhere)] == [3000, 3900]
    same = settings.model_copy(update={"ws_port": 3000})
    assert [each.port for each in compose.served_by("pynode", same)] == [3000]
    assert [each.port for each in compose.served_by("pynode", settings, 9000)] == [9000]
