"""Facades: a call to another process gives the same values and the same problems as a call in this one."""

import asyncio
import contextlib
import json
import logging
import string
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, get_args, get_origin, get_type_hints

import httpx2
import orjson
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from bedplate import compose
from bedplate.kernel import server
from bedplate.kernel.breaker import CALL_SECONDS, Breaker, BreakerState, CircuitOpen, MemoryCircuits
from bedplate.kernel.errors import Kind, Problem, Unavailable
from bedplate.kernel.facade import CREDENTIAL_SECONDS, Credentials, InternalApi, operations, path_of
from bedplate.kernel.paging import Page, Slice
from bedplate.kernel.remote import AT_ONCE, RemoteCaller, remote
from bedplate.kernel.security import Tokens
from bedplate.kernel.telemetry import REQUEST_ID
from tests.kernel.clocks import NOON, StillClock
from tests.kernel.wire import Wire

SECRET = "a-secret-that-two-processes-share-in-this-test"


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Brick:
    name: str
    colour: Colour
    weight: float
    made_at: datetime
    painted_at: datetime | None
    tags: list[str]
    notes: dict[str, int]


class WallTooHigh(Problem):
    kind = Kind.CONFLICT
    message = "{height} bricks are too many"


class Wall(ABC):
    @abstractmethod
    async def lay(self, brick: Brick, times: int = 1) -> Page[Brick]: ...

    @abstractmethod
    async def find(self, name: str, part: Slice | None = None) -> Brick | None: ...

    @abstractmethod
    async def paint(self, colours: list[Colour]) -> dict[str, Colour]: ...

    @abstractmethod
    async def fail(self, problem: str, details: dict[str, str | int]) -> None: ...

    @abstractmethod
    async def break_down(self) -> None: ...

    @abstractmethod
    async def request_id(self) -> str: ...


class WallService(Wall):
    async def lay(self, brick: Brick, times: int = 1) -> Page[Brick]:
        if times > 100:
            raise WallTooHigh(height=times)
        return Page([brick] * times, times)

    async def find(self, name: str, part: Slice | None = None) -> Brick | None:
        return BRICK if name == BRICK.name and part in (None, Slice(1, 2)) else None

    async def paint(self, colours: list[Colour]) -> dict[str, Colour]:
        return {colour.name: colour for colour in colours}

    async def fail(self, problem: str, details: dict[str, str | int]) -> None:
        raise Problem.known[problem](**details)

    async def break_down(self) -> None:
        raise KeyError("a defect of the implementation")

    async def request_id(self) -> str:
        return REQUEST_ID.get()


BRICK = Brick("Ziegel", Colour.RED, 3.25, datetime(2026, 1, 2, 3, 4, 5, 678901, UTC), None, ["ä", ""], {"a": 1})


@asynccontextmanager
async def served(application: Any) -> AsyncIterator[str]:
    """The address of an application on a loopback port."""
    listener = server.listen("127.0.0.1", 0)
    serving = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_config=None, ws="none"))
    task = asyncio.create_task(serving._serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        serving.should_exit = True
        await task


@pytest.fixture(scope="module")
def clock() -> StillClock:
    return StillClock()


@pytest.fixture(scope="module")
def credentials(clock: StillClock) -> Credentials:
    return Credentials(Tokens(SECRET), clock)


@pytest.fixture(scope="module")
async def url(credentials: Credentials) -> AsyncIterator[str]:
    async with served(InternalApi({Wall: WallService()}, credentials)) as address:
        yield address


@pytest.fixture(scope="module", params=["local", "remote"])
async def wall(request: pytest.FixtureRequest, url: str, credentials: Credentials) -> AsyncIterator[Wall]:
    if request.param == "local":
        yield WallService()
        return
    async with RemoteCaller(url, credentials) as caller:
        yield remote(Wall, caller)


async def calling(url: str, credentials: Credentials, stack: AsyncExitStack) -> Wall:
    return remote(Wall, await stack.enter_async_context(RemoteCaller(url, credentials)))


moments = st.datetimes(timezones=st.just(UTC))
bricks = st.builds(
    Brick,
    name=st.text(),
    colour=st.sampled_from(Colour),
    weight=st.floats(allow_nan=False, allow_infinity=False),
    made_at=moments,
    painted_at=st.none() | moments,
    tags=st.lists(st.text()),
    notes=st.dictionaries(st.text(), st.integers(-(2**53), 2**53)),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(brick=bricks, times=st.integers(0, 3))
async def test_values_come_back_equal(wall: Wall, brick: Brick, times: int) -> None:
    assert await wall.lay(brick, times=times) == Page([brick] * times, times)


async def test_defaults_none_lists_and_enumerations_come_back_equal(wall: Wall) -> None:
    assert await wall.lay(BRICK) == Page([BRICK], 1)
    assert await wall.find(BRICK.name) == BRICK
    assert await wall.find(part=Slice(1, 2), name=BRICK.name) == BRICK
    assert await wall.find("another", Slice(1, 2)) is None
    painted = await wall.paint([Colour.RED, Colour.BLUE])
    assert painted == {"RED": Colour.RED, "BLUE": Colour.BLUE}
    assert all(isinstance(colour, Colour) for colour in painted.values())


async def test_a_problem_is_raised_as_the_same_class_with_the_same_words_and_details(wall: Wall) -> None:
    with pytest.raises(WallTooHigh) as raised:
        await wall.lay(BRICK, 101)
    assert str(raised.value) == "101 bricks are too many"
    assert raised.value.details == {"height": 101}


def details_of(problem: type[Problem]) -> dict[str, Any]:
    names = {name for _, name, _, _ in string.Formatter().parse(problem.message) if name}
    return dict.fromkeys(names, "words {with} braces") | {"retry_after": 5}


async def test_every_problem_of_the_product_can_cross(wall: Wall) -> None:
    for name, problem in Problem.known.items():
        with pytest.raises(Problem) as raised:
            await wall.fail(name, details_of(problem))
        assert type(raised.value) is problem
        assert raised.value.details == details_of(problem)
        assert str(raised.value) == str(problem(**details_of(problem)))


async def test_the_request_id_goes_along(wall: Wall) -> None:
    token = REQUEST_ID.set("req-42")
    try:
        assert await wall.request_id() == "req-42"
    finally:
        REQUEST_ID.reset(token)


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer nonsense",
        "Basic YTpi",
        f"Bearer {Tokens('another-secret-of-another-installation').sign({'type': 'service', 'aud': 'internal'})}",
    ],
)
async def test_without_a_credential_nothing_is_served(url: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    async with httpx2.AsyncClient(base_url=url, headers=headers) as client:
        for path in (path_of(Wall, "request_id"), "/internal/wall/nothing", "/anything"):
            assert (await client.post(path, content=b"{}")).status_code == 401


async def test_a_websocket_is_closed(credentials: Credentials) -> None:
    application, sent = InternalApi({Wall: WallService()}, credentials), []

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, object]) -> None:
        sent.append(message["type"])

    await application({"type": "websocket", "path": "/health", "headers": []}, receive, send)
    assert sent == ["websocket.close"]


async def test_an_access_token_of_a_user_is_no_credential(url: str, clock: StillClock) -> None:
    now = int(clock.timestamp())
    claims = {"sub": "x", "jti": "y", "iat": now, "exp": now + 60}
    for mix in ({"type": "access", "aud": "internal"}, {"type": "service", "aud": "cobalt"}):
        token = Tokens(SECRET).sign(claims | mix)
        async with httpx2.AsyncClient(base_url=url, headers={"authorization": f"Bearer {token}"}) as client:
            assert (await client.post(path_of(Wall, "request_id"), content=b"{}")).status_code == 401


def test_a_credential_is_good_for_a_minute() -> None:
    clock = StillClock()
    credentials = Credentials(Tokens(SECRET), clock)
    header = credentials.header()
    clock.advance(CREDENTIAL_SECONDS - 1)
    assert credentials.accepts(header)
    clock.advance(1)
    assert not credentials.accepts(header)


async def test_health_is_open(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get("/health")).status_code == 200


async def test_a_process_of_another_installation_is_unavailable(url: str, clock: StillClock) -> None:
    async with AsyncExitStack() as stack:
        stranger = await calling(url, Credentials(Tokens("b" * 32), clock), stack)
        with pytest.raises(Unavailable):
            await stranger.request_id()


async def test_nobody_there_is_unavailable(credentials: Credentials) -> None:
    async with RemoteCaller("http://127.0.0.1:1", credentials) as caller:
        with pytest.raises(Unavailable):
            await remote(Wall, caller).request_id()
        with pytest.raises(Unavailable):
            await caller.ping()


async def test_a_process_that_does_not_answer_in_time_is_unavailable(credentials: Credentials) -> None:
    silent = server.listen("127.0.0.1", 0)  # connections are taken by the kernel, and nobody reads them
    async with AsyncExitStack() as stack:
        wall = await calling(f"http://127.0.0.1:{silent.getsockname()[1]}", credentials, stack)
        with pytest.raises(Unavailable):
            async with asyncio.timeout(10):
                await wall.request_id()
    silent.close()


async def test_a_defect_over_there_is_unavailable_here(url: str, credentials: Credentials) -> None:
    async with AsyncExitStack() as stack:
        wall = await calling(url, credentials, stack)
        with pytest.raises(Unavailable):
            await wall.break_down()


async def test_a_request_that_does_not_fit_is_told_from_a_defect(url: str, credentials: Credentials) -> None:
    async with httpx2.AsyncClient(base_url=url, headers={"authorization": credentials.header()}) as client:
        for body in (b"", b"[]", b"{", b"{}", b'{"brick": 5}', b'{"unknown": 1}', b'{"times": 1}'):
            assert (await client.post(path_of(Wall, "lay"), content=body)).status_code == 400, body
        assert (await client.post(path_of(Wall, "break_down"), content=b"{}")).status_code == 500


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>a proxy's page</html>"),
        (200, b'{"items": "many"}'),
        (409, b"<html>conflict</html>"),
        (409, b"{}"),
        (409, orjson.dumps({"problem": "NeverHeardOf", "details": {}})),
        (409, orjson.dumps({"problem": "WallTooHigh", "details": {}})),
        (502, b""),
    ],
)
async def test_an_answer_that_makes_no_sense_is_unavailable(credentials: Credentials, status: int, body: bytes) -> None:
    async def nonsense(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(served(nonsense))
        wall = await calling(address, credentials, stack)
        with pytest.raises(Unavailable):
            await wall.lay(BRICK)


class Moody:
    """A server that answers as it is told, and counts what reaches it."""

    def __init__(self) -> None:
        self.status, self.body = 200, b'"req-42"'
        self.hits = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.hits += 1
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": self.body})


@dataclass
class Guarded:
    """A facade behind a breaker, with a clock that only tests turn."""

    wall: Wall
    caller: RemoteCaller
    breaker: Breaker
    clock: StillClock

    async def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(Unavailable) as raised:
                await self.wall.request_id()
            assert type(raised.value) is Unavailable, "it was sent"


@asynccontextmanager
async def guarded(url: str, credentials: Credentials) -> AsyncIterator[Guarded]:
    clock = StillClock()
    breaker = Breaker("wall_service", MemoryCircuits(clock))
    async with RemoteCaller(url, credentials, breaker) as caller:
        yield Guarded(remote(Wall, caller), caller, breaker, clock)


@pytest.mark.parametrize(
    ("status", "body"), [(500, b""), (503, b"<html>a proxy's page</html>"), (200, b"<html>"), (409, b"{}"), (302, b"")]
)
async def test_after_five_failures_calls_are_refused_and_do_not_reach_the_server(
    credentials: Credentials, status: int, body: bytes
) -> None:
    moody = Moody()
    moody.status, moody.body = status, body
    async with served(moody) as url, guarded(url, credentials) as far:
        await far.fail(5)
        began = asyncio.get_running_loop().time()
        for _ in range(100):
            with pytest.raises(CircuitOpen) as raised:
                await far.wall.request_id()
            assert raised.value.details == {"retry_after": 60}
        assert asyncio.get_running_loop().time() - began < 1, "10 ms each"
        assert moody.hits == 5


async def test_a_minute_later_one_call_tries_and_a_success_lets_all_through(credentials: Credentials) -> None:
    moody = Moody()
    moody.status = 500
    async with served(moody) as url, guarded(url, credentials) as far:
        await far.fail(5)
        far.clock.advance(60)
        await far.fail()
        assert (await far.breaker.snapshot()).state == "open"
        moody.status = 200
        with pytest.raises(CircuitOpen):
            await far.wall.request_id()
        far.clock.advance(60)
        outcomes = await asyncio.gather(*(far.wall.request_id() for _ in range(100)), return_exceptions=True)
        assert outcomes.count("req-42") == 1
        assert [type(each) for each in outcomes].count(CircuitOpen) == 99
        assert moody.hits == 7
        assert await asyncio.gather(*(far.wall.request_id() for _ in range(10))) == ["req-42"] * 10
        assert (await far.breaker.snapshot()).failure_count == 0


async def test_problems_are_answers_and_no_failures(url: str, credentials: Credentials) -> None:
    async with guarded(url, credentials) as far:
        for problem in ["WallTooHigh", "Unavailable"] * 5:
            with pytest.raises(Problem.known[problem]):
                await far.wall.fail(problem, {"height": 101})
        assert await far.breaker.snapshot() == BreakerState("closed", 0, None)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 429])
async def test_a_refusal_is_unavailable_and_yet_no_failure(credentials: Credentials, status: int) -> None:
    moody = Moody()
    async with served(moody) as url, guarded(url, credentials) as far:
        moody.status = 500
        await far.fail(4)
        moody.status = status
        await far.fail(6)
        assert await far.breaker.snapshot() == BreakerState("closed", 0, NOON)


async def test_a_ping_does_not_ask_the_breaker(credentials: Credentials) -> None:
    moody = Moody()
    moody.status = 500
    async with served(moody) as url, guarded(url, credentials) as far:
        for _ in range(6):
            with pytest.raises(Unavailable):
                await far.caller.ping()
        assert await far.breaker.snapshot() == BreakerState("closed", 0, None)
        await far.fail(5)
        moody.status = 200
        await far.caller.ping()
        assert (await far.breaker.snapshot()).state == "open"


class Attempts(logging.Handler):
    """Counts, by what the caller logs, how often no connection came about."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = 0
        self.one_failed = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "no connection came about":
            self.failed += 1
            self.one_failed.set()


@pytest.fixture
def attempts(caplog: pytest.LogCaptureFixture) -> Iterator[Attempts]:
    client, counting = logging.getLogger("bedplate.remote"), Attempts()
    client.addHandler(counting)
    with caplog.at_level(logging.DEBUG, client.name):
        yield counting
    client.removeHandler(counting)


async def test_a_refused_connection_is_tried_again_three_times_and_is_one_failure(
    credentials: Credentials, attempts: Attempts
) -> None:
    async with guarded("http://127.0.0.1:1", credentials) as far:
        await far.fail()
        assert attempts.failed == 4
        assert await far.breaker.snapshot() == BreakerState("closed", 1, NOON)
        await far.fail(4)
        assert attempts.failed == 20
        with pytest.raises(CircuitOpen):
            await far.wall.request_id()
        assert attempts.failed == 20, "nothing is tried where the circuit is open"


async def test_a_process_that_comes_back_between_two_attempts_is_called(
    credentials: Credentials, attempts: Attempts
) -> None:
    moody = Moody()
    async with served(moody) as url, Wire(url, 80) as wire, guarded(wire.url, credentials) as far:
        await wire.cut()
        calling = asyncio.create_task(far.wall.request_id())
        async with asyncio.timeout(CALL_SECONDS):
            await attempts.one_failed.wait()
            await wire.mend()
            assert await calling == "req-42"
        assert moody.hits == 1
        assert await far.breaker.snapshot() == BreakerState("closed", 0, None)


@asynccontextmanager
async def answering(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that reads a request, answers in its own way, and hangs up; what it has read."""
    requests: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        with contextlib.suppress(OSError):
            await answer(writer)
        writer.close()

    listening = await asyncio.start_server(take, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", requests


async def test_what_may_have_been_sent_is_never_sent_again(credentials: Credentials) -> None:
    async def hang_up(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with answering(hang_up) as (url, requests), guarded(url, credentials) as far:
        await far.fail(5)
        assert len(requests) == 5
        with pytest.raises(CircuitOpen):
            await far.wall.request_id()
        assert len(requests) == 5


async def test_too_many_calls_at_once_are_no_failures_of_the_server(credentials: Credentials) -> None:
    hold = asyncio.Event()

    async def wait(writer: asyncio.StreamWriter) -> None:
        await hold.wait()

    async with answering(wait) as (url, requests), guarded(url, credentials) as far:
        many = [asyncio.create_task(far.wall.request_id()) for _ in range(AT_ONCE)]
        async with asyncio.timeout(2):
            while len(requests) < len(many):  # noqa: ASYNC110  # nobody would tell
                await asyncio.sleep(0)
        refused = await asyncio.gather(*(far.wall.request_id() for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in refused] == [Unavailable] * 5
        assert not any(call.done() for call in many)
        assert (await far.breaker.snapshot()).failure_count == 0
        for call in many:
            call.cancel()
        await asyncio.gather(*many, return_exceptions=True)
        hold.set()


async def test_a_call_takes_three_seconds_at_most_though_the_answer_keeps_dripping(credentials: Credentials) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.2)

    async with answering(drip) as (url, requests), guarded(url, credentials) as far:
        began = asyncio.get_running_loop().time()
        await far.fail()
        assert CALL_SECONDS - 0.1 < asyncio.get_running_loop().time() - began < CALL_SECONDS + 1
        assert len(requests) == 1
        assert await far.breaker.snapshot() == BreakerState("closed", 1, NOON)


async def test_a_caller_that_gives_up_says_nothing_about_the_server(credentials: Credentials) -> None:
    async def think(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await over.wait()

    asked, over = asyncio.Event(), asyncio.Event()
    async with answering(think) as (url, _), guarded(url, credentials) as far:
        for _ in range(6):
            asked.clear()
            task = asyncio.create_task(far.wall.request_id())
            async with asyncio.timeout(CALL_SECONDS):
                await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await far.breaker.snapshot() == BreakerState("closed", 0, None)
        over.set()


async def test_unknown_paths_and_methods_are_not_found(url: str, credentials: Credentials) -> None:
    async with httpx2.AsyncClient(base_url=url, headers={"authorization": credentials.header()}) as client:
        assert (await client.post("/internal/wall/collapse", content=b"{}")).status_code == 404
        assert (await client.get(path_of(Wall, "request_id"))).status_code == 404


FACADES = [facade for facades in compose.FACADES.values() for facade in facades]


@pytest.mark.parametrize("facade", FACADES, ids=lambda facade: facade.__name__)
def test_every_method_of_every_facade_can_be_called_from_elsewhere(facade: type[Any]) -> None:
    for name, operation in operations(facade).items():
        for adapter in (*operation.arguments.values(), operation.result):
            assert json.dumps(adapter.json_schema(mode="serialization")), name
            assert json.dumps(adapter.json_schema(mode="validation")), name


@pytest.mark.parametrize("facade", FACADES, ids=lambda facade: facade.__name__)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_value_of_every_facade_crosses_unchanged(facade: type[Any], data: st.DataObject) -> None:
    for name, operation in operations(facade).items():
        hints = get_type_hints(getattr(facade, name))
        adapters = {**operation.arguments, "return": operation.result}
        for argument, adapter in adapters.items():
            value = data.draw(values_of(hints[argument]), label=f"{name}.{argument}")
            crossed = orjson.loads(orjson.dumps(adapter.dump_python(value, mode="json")))
            assert adapter.validate_python(crossed) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    bool: st.booleans(),
    datetime: moments,
    type(None): st.none(),
    JsonValue: json_values,
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type that JSON can carry."""
    if hint in PLAIN:
        return PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Page:
        return st.builds(Page, st.lists(values_of(arguments[0]), max_size=2), st.integers(0, 10))
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=2)
    if arguments:
        return st.one_of(*map(values_of, arguments))
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    return st.builds(hint, **{name: values_of(each) for name, each in get_type_hints(hint).items()})


def test_times_of_other_zones_are_the_same_moment() -> None:
    operation = operations(Wall)["lay"]
    tokyo = datetime(2026, 1, 1, 9, tzinfo=UTC).astimezone(tz=None) + timedelta(0)
    brick = Brick("b", Colour.RED, 1.0, tokyo, None, [], {})
    assert operation.arguments["brick"].validate_python(operation.dump((brick,), {})["brick"]) == brick
