"""Refresh tokens: one child each, a lost answer can be asked for again, and a thief ends what he stole."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from bedplate import compose
from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import Problem
from bedplate.kernel.ids import prefixed
from bedplate.kernel.settings import Settings
from bedplate.modules.identity.public import (
    Grant,
    InvalidToken,
    Principals,
    Registration,
    SessionPolicy,
    Sessions,
    TokenExpired,
    Users,
)
from bedplate.systems.cobalt import deps as cobalt
from bedplate.systems.pantstack import deps as pantstack
from tests import factories
from tests.factories import PASSWORD, Account
from tests.security.crowd import CROWD, at_once, on_both_engines, rounds, statuses
from tests.security.rotation import child_of, leave, present, read
from tests.world import SECRET, World

GRACE = 10
in_both_systems = pytest.mark.parametrize("system", ["cobalt", "pantstack"])


def public_id(account: Account) -> str:
    return prefixed("usr", account.id)


@on_both_engines
@in_both_systems
@rounds(20, 200)
async def test_of_fifty_refreshes_one_child_comes_and_its_parent_is_good_until_the_child_is_used(
    world: World, system: str, rounds: int
) -> None:
    token = (await world.user(system)).refresh_token
    for _ in range(rounds):
        answers = await at_once(lambda _, token=token: present(world, system, token))
        assert statuses(answers) == {200: CROWD}
        children = {child_of(system, answer) for answer in answers}
        assert len(children) == 1
        again = await present(world, system, token)  # the answer was lost, the client asks again
        assert child_of(system, again) in children
        token = children.pop()


@on_both_engines
@in_both_systems
@pytest.mark.parametrize("how", ["late", "after the child was used", "an older ancestor"])
async def test_a_replayed_token_ends_its_family_at_once(world: World, system: str, how: str) -> None:
    account = await world.user(system)
    first = account.refresh_token
    answer = await present(world, system, first)
    if how == "late":
        world.clock.advance(GRACE + 1)
    else:
        answer = await present(world, system, child_of(system, answer))
    if how == "an older ancestor":
        answer = await present(world, system, child_of(system, answer))
    newest, access = child_of(system, answer), answer.json()["access_token"]
    assert await read(world, system, access, public_id(account)) == 200
    assert (await present(world, system, first)).status_code == 401
    for token in (access, account.access_token):
        assert await read(world, system, token, public_id(account)) == 401
    assert (await present(world, system, newest)).status_code == 401


@on_both_engines
@in_both_systems
@rounds(3, 200)
async def test_fifty_replays_of_a_spent_token_are_all_refused(world: World, system: str, rounds: int) -> None:
    account = await world.user(system)
    for _ in range(rounds):
        entered = await world.sign_in(system, await world.runtime.get(Users).get_user(account.id))
        answer = await present(world, system, entered.refresh_token)
        world.clock.advance(GRACE + 1)
        replays = await at_once(lambda _, token=entered.refresh_token: present(world, system, token))
        assert statuses(replays) == {401: CROWD}
        assert await read(world, system, answer.json()["access_token"], public_id(account)) == 401
        assert (await present(world, system, child_of(system, answer))).status_code == 401


@on_both_engines
@in_both_systems
@rounds(5, 200)
async def test_nothing_survives_a_logout_among_refreshes(world: World, system: str, rounds: int) -> None:
    account = await world.user(system)
    user = await world.runtime.get(Users).get_user(account.id)
    for _ in range(rounds):
        entered = await world.sign_in(system, user)

        async def act(index: int, entered: Account = entered) -> httpx2.Response:
            if index == CROWD // 2:
                return await leave(world, system, entered.refresh_token, entered.access_token)
            return await present(world, system, entered.refresh_token)

        answers = await at_once(act)
        left = answers.pop(CROWD // 2)
        assert left.status_code in (200, 204), left.text
        assert set(statuses(answers)) <= {200, 401}
        given = [answer for answer in answers if answer.status_code == 200]
        for token in {entered.refresh_token, *(child_of(system, answer) for answer in given)}:
            assert (await present(world, system, token)).status_code == 401
        for access in {entered.access_token, *(answer.json()["access_token"] for answer in given)}:
            assert await read(world, system, access, public_id(account)) == 401


@in_both_systems
async def test_a_session_ends_seven_days_after_its_last_refresh(world: World, system: str) -> None:
    token = (await world.user(system)).refresh_token
    for _ in range(2):
        world.clock.advance(7 * 86400 - 5)
        answer = await present(world, system, token)
        assert answer.status_code == 200
        token = child_of(system, answer)
    world.clock.advance(7 * 86400)
    assert (await present(world, system, token)).status_code == 401


# The rotation against a model of it, in every order of events that hypothesis can think of.


class StillClock(Clock):
    """A clock that stands until it is turned."""

    def __init__(self) -> None:
        self._now = datetime(2030, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: int) -> None:
        self._now += timedelta(seconds=seconds)


@dataclass
class ModelSession:
    """Its refresh tokens, oldest first, when each was spent, and the access tokens it was given."""

    opened: datetime
    tokens: list[str]
    access: dict[str, datetime] = field(default_factory=dict)
    spent: list[datetime] = field(default_factory=list)
    issued: list[datetime] = field(default_factory=list)
    ended: bool = False


class Inside:
    """The modules, in an event loop of their own."""

    def __init__(self, stack: ExitStack, template: Path) -> None:
        self.clock = StillClock()
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shutil.copy(template, folder / "bedplate.db")
        self._runner = stack.enter_context(asyncio.Runner())
        opening = self._open(Settings(_env_file=None, secret=SECRET, data=folder))
        self._runtime = self._runner.run(opening.__aenter__())
        stack.callback(lambda: self._runner.run(opening.__aexit__(None, None, None)))
        self.sessions = self._runtime.get(Sessions)
        self.principals = self._runtime.get(Principals)

    def do(self, work: Any) -> Any:
        """The result, or the class of the problem."""

        async def attempt() -> Any:
            try:
                return await work
            except Problem as problem:
                return type(problem)

        return self._runner.run(attempt())

    @asynccontextmanager
    async def _open(self, with_settings: Settings) -> Any:
        async with compose.running(with_settings, self.clock, deliver=False) as runtime:
            yield runtime


class Rotation(RuleBasedStateMachine):
    """One account, any number of sessions. `policy` and `inside` are set by the test."""

    policy: SessionPolicy
    inside: Inside
    tokens = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[str, ModelSession] = {}
        self.owner: dict[str, str] = {}

    @property
    def now(self) -> datetime:
        return self.inside.clock.now()

    @initialize(target=tokens)
    def sign_up(self) -> str:
        self.login = factories.email()
        grant = self.inside.do(self.inside.sessions.sign_up(Registration(self.login, PASSWORD), self.policy))
        return self._begin(grant)

    @rule(target=tokens)
    def sign_in(self) -> str:
        return self._begin(self.inside.do(self.inside.sessions.sign_in(self.login, PASSWORD, self.policy)))

    @rule(target=tokens, token=tokens)
    def refresh(self, token: str) -> str:
        session = self.model[self.owner[token]]
        place = session.tokens.index(token)
        expected = self._expected(session, place)
        found = self.inside.do(self.inside.sessions.refresh(token, self.policy))
        if isinstance(expected, type):
            assert found is expected
            return token
        assert isinstance(found, Grant), found
        if expected == "a child":
            assert found.refresh_token not in self.owner
            session.spent.append(self.now)
            session.tokens.append(found.refresh_token)
            session.issued.append(self.now)
            self.owner[found.refresh_token] = found.session_id
        assert found.refresh_token == session.tokens[place + 1]
        self._note_access(found)
        return found.refresh_token

    @rule(token=tokens)
    def sign_out(self, token: str) -> None:
        """Any token of the session will do, spent or not: leaving is never refused to who is in."""
        assert self.inside.do(self.inside.sessions.sign_out(token, self.policy.audience)) is None
        self.model[self.owner[token]].ended = True

    @rule(seconds=st.sampled_from([1, 4, 9, 10, 11, 60]))
    def time_passes(self, seconds: int) -> None:
        self.inside.clock.advance(seconds)

    @rule(fraction=st.sampled_from([0.5, 1.0]))
    def much_time_passes(self, fraction: float) -> None:
        self.inside.clock.advance(int(self.policy.refresh_seconds * fraction))

    @invariant()
    def an_access_token_is_good_while_its_session_lives_and_it_is_young(self) -> None:
        for session in self.model.values():
            for token, issued in session.access.items():
                old = self.now >= issued + timedelta(seconds=self.policy.access_seconds)
                found = self.inside.do(self.inside.principals.authenticate(token, self.policy.audience))
                assert isinstance(found, type) is (session.ended or old), found

    def _begin(self, grant: Any) -> str:
        assert isinstance(grant, Grant), grant
        self.model[grant.session_id] = ModelSession(self.now, [grant.refresh_token], issued=[self.now])
        self.owner[grant.refresh_token] = grant.session_id
        self._note_access(grant)
        return grant.refresh_token

    def _note_access(self, grant: Grant) -> None:
        self.model[grant.session_id].access = {grant.access_token: self.now}  # the newest is enough

    def _expected(self, session: ModelSession, place: int) -> Any:
        """What the documents say of a refresh with the token at this place. A replay ends what the policy says."""
        if self.now >= session.issued[place] + timedelta(seconds=self.policy.refresh_seconds):
            return TokenExpired
        if session.ended:
            return InvalidToken
        if place == len(session.tokens) - 1:
            return "a child"
        is_parent_of_the_newest = place == len(session.tokens) - 2
        if is_parent_of_the_newest and self.now - session.spent[place] <= timedelta(seconds=GRACE):
            return "the same child"
        for other in self.model.values() if self.policy.reuse_ends_all else [session]:
            other.ended = True
        return InvalidToken


@contextmanager
def inside(template: Path) -> Iterator[Inside]:
    with ExitStack() as stack:
        yield Inside(stack, template)


@pytest.mark.parametrize("policy", [cobalt.POLICY, pantstack.POLICY], ids=lambda policy: policy.audience)
@pytest.mark.parametrize("examples", [15, pytest.param(1_000, marks=(pytest.mark.faults, pytest.mark.timeout(1800)))])
def test_rotation_does_what_the_model_does(sqlite_template: Path, policy: SessionPolicy, examples: int) -> None:
    with inside(sqlite_template) as modules:
        machine = type("Rotation", (Rotation,), {"policy": policy, "inside": modules})
        unhurried = settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(machine, settings=unhurried)
