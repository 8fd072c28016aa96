"""Every line of the contract files, as a test by name."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from bedplate import compose
from tests.contracts.runner import CONTRACTS, Contract, Line, Operation, Story
from tests.world import World

FACADES = {facade.__name__: facade for facades in compose.FACADES.values() for facade in facades}
by_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=str)
# What one operation shows in each deployment need not be shown of all its like in more than one.
in_one_deployment = pytest.mark.parametrize("world", ["sqlite"], indirect=True)


def lines(*, everywhere: bool) -> Iterator[Any]:
    """Those that are kept in every deployment: what succeeds, and the first of each refusal. Or all others: what they
    show does not hang on where modules and tables are."""
    for contract in CONTRACTS:
        refused: set[Any] = set()
        own = [(operation, *line) for operation in contract.operations.values() for line in contract.lines(operation)]
        for operation, name, line in [*own, *_of_their_kind(contract, first=True)]:
            status = contract.expected_status(line)
            refusal = (status, line.code)
            if (status < 400 or refusal not in refused) == everywhere:
                yield pytest.param(contract, operation, line, id=f"{contract}: {name}")
            refused.add(refusal)


def lines_of_their_kind() -> Iterator[Any]:
    for contract in CONTRACTS:
        for operation, name, line in _of_their_kind(contract, first=False):
            yield pytest.param(contract, operation, line, id=f"{contract}: {name}")


def _of_their_kind(contract: Contract, *, first: bool) -> Iterator[tuple[Operation, str, Line]]:
    """Those of the first operation of each kind, or those of all others."""
    seen: set[str] = set()
    for operation in contract.operations.values():
        kind = f"{operation.auth}, {'with' if 'json' in operation.request else 'without'} JSON"
        if (kind not in seen) == first:
            for name, line in contract.lines_of_its_kind(operation):
                yield operation, name, line
        seen.add(kind)


def operations_during_maintenance() -> Iterator[Any]:
    for contract in CONTRACTS:
        served = contract.text.get("maintenance", {}).get("served")
        if served is not None:
            for name, operation in contract.operations.items():
                verb = "is served" if name in served else "is refused"
                yield pytest.param(contract, operation, name in served, id=f"{contract}: {name} {verb}")


def limits() -> Iterator[Any]:
    for contract in CONTRACTS:
        for name, limit in contract.text["limits"].items():
            yield pytest.param(contract, limit, id=f"{contract}: {name}")


def sharing_a_limit() -> Iterator[Any]:
    for contract in CONTRACTS:
        for limit in contract.text["limits"].values():
            for name in limit["operations"][1:]:
                yield pytest.param(contract, limit, name, id=f"{contract}: {name}, {limit['default']}")


def strays() -> Iterator[Any]:
    for contract in CONTRACTS:
        for stray in contract.text["strays"]:
            yield pytest.param(contract, dict(stray), id=f"{contract}: {stray['name']}")


@pytest.mark.parametrize(("contract", "operation", "line"), list(lines(everywhere=True)))
async def test_the_contract_is_kept(world: World, contract: Contract, operation: Operation, line: Line) -> None:
    story = Story(world, contract)
    await story.set(operation, line)
    await story.check(line, await story.ask(operation, line.send))


@in_one_deployment
@pytest.mark.parametrize(("contract", "operation", "line"), list(lines(everywhere=False)))
async def test_the_rest_of_the_contract_is_kept(
    world: World, contract: Contract, operation: Operation, line: Line
) -> None:
    await test_the_contract_is_kept(world, contract, operation, line)


@in_one_deployment
@pytest.mark.parametrize(("contract", "operation", "line"), list(lines_of_their_kind()))
async def test_an_operation_refuses_what_all_of_its_kind_refuse(
    world: World, contract: Contract, operation: Operation, line: Line
) -> None:
    await test_the_contract_is_kept(world, contract, operation, line)


@in_one_deployment
@by_contract
async def test_every_operation_of_the_contract_has_a_route(world: World, contract: Contract) -> None:
    assert documented(contract) - routed(world.app(contract.system)) == set()


@in_one_deployment
@by_contract
async def test_every_route_has_a_line_in_the_contract(world: World, contract: Contract) -> None:
    assert routed(world.app(contract.system)) - documented(contract) == set()


@by_contract
def test_every_documented_code_is_provoked(contract: Contract) -> None:
    operations = contract.operations.values()
    provoked = {line.code for operation in operations for _, line in contract.lines(operation)}
    provoked |= {line.code for operation in operations for _, line in contract.lines_of_its_kind(operation)}
    provoked |= {stray.get("code") for stray in contract.text["strays"]}
    provoked |= {limit.get("code") for limit in contract.text["limits"].values()}
    provoked |= {contract.text.get(rule, {}).get("code") for rule in ("maintenance", "defect")}
    assert contract.text.get("codes", {}).keys() - provoked == set()


@pytest.mark.parametrize(("contract", "operation", "served"), list(operations_during_maintenance()))
async def test_during_maintenance(world: World, contract: Contract, operation: Operation, served: bool) -> None:
    story = Story(world, contract)
    success = Line(**operation.success)
    await story.set(operation, success)
    rule = contract.text["maintenance"]
    admin = await world.admin(contract.system)
    switch = contract.operations["maintenance"]
    switched = await admin.post(switch.path, json={"enabled": True, "message": rule["message"]})
    assert switched.status_code == 200
    await story.check(success if served else answer_of(rule), await story.ask(operation, success.send))


@pytest.mark.parametrize(("contract", "stray"), list(strays()))
async def test_a_request_beside_the_contract_gets_the_documented_body(
    world: World, contract: Contract, stray: dict[str, Any]
) -> None:
    story = Story(world, contract)
    body, sent = b"x" * stray.get("size", 0), story.filled(stray.get("send", {}))
    async with world.client(contract.system) as client:
        answer = await client.request(stray["method"], stray["path"], content=body, headers=sent)
    await story.check(answer_of(stray), answer)


@by_contract
async def test_a_defect_gets_the_documented_body_and_no_more(
    world: World, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the inside")

    rule = contract.text["defect"]
    facade, _, method = rule["breaks"].partition(".")
    monkeypatch.setattr(world.front.get(FACADES[facade]), method, broken)
    story = Story(world, contract)
    operation = contract.operations[rule["operation"]]
    await story.set(operation, Line())
    answer = await story.ask(operation, {})
    await story.check(answer_of(rule), answer)
    assert "secret" not in answer.text


@pytest.mark.parametrize(("contract", "limit"), list(limits()))
async def test_a_limit_is_the_documented_one(world: World, contract: Contract, limit: dict[str, Any]) -> None:
    assert getattr(world.settings, limit["setting"].lower()) == limit["default"]


@pytest.mark.limits
@pytest.mark.parametrize(("contract", "limit"), list(limits()))
async def test_a_limit_admits_its_number_and_refuses_the_next(
    world: World, contract: Contract, limit: dict[str, Any]
) -> None:
    await test_operations_share_a_limit(world, contract, limit, limit["operations"][0])


@pytest.mark.limits
@in_one_deployment
@pytest.mark.parametrize(("contract", "limit", "name"), list(sharing_a_limit()))
async def test_operations_share_a_limit(world: World, contract: Contract, limit: dict[str, Any], name: str) -> None:
    await use_up(world, contract, limit)
    answer = await knock(world, contract, contract.operations[name])
    await Story(world, contract).check(answer_of(limit), answer)
    assert int(answer.headers["retry-after"]) <= limit["window"]


@pytest.mark.limits
@pytest.mark.parametrize(("contract", "limit"), list(limits()))
async def test_a_window_opens_with_its_first_request(world: World, contract: Contract, limit: dict[str, Any]) -> None:
    first = contract.operations[limit["operations"][0]]
    half = limit["window"] // 2
    await knock(world, contract, first)
    world.clock.advance(half)
    await use_up(world, contract, limit, limit["number"] - 1)
    refused = await knock(world, contract, first)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) <= half
    world.clock.advance(half)
    await use_up(world, contract, limit)
    assert (await knock(world, contract, first)).status_code == 429


@pytest.mark.limits
@pytest.mark.parametrize(("contract", "limit"), list(limits()))
async def test_each_address_has_a_window_of_its_own_and_cannot_claim_another(
    world: World, contract: Contract, limit: dict[str, Any]
) -> None:
    first = contract.operations[limit["operations"][0]]
    await use_up(world, contract, limit)
    claimed = await knock(world, contract, first, headers={"X-Forwarded-For": "192.0.2.9"})
    assert claimed.status_code == 429
    neighbour = await knock(world, contract, first, address="192.0.2.7")
    assert neighbour.status_code != 429


def documented(contract: Contract) -> set[tuple[str, str]]:
    return {(operation.method, operation.path) for operation in contract.operations.values()}


def routed(app: FastAPI) -> set[tuple[str, str]]:
    found = set()
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, Mount):
            found.add(("GET", f"{route.path}/{{path}}"))
        else:
            found |= {(method, route.path) for method in (route.methods or set()) - {"HEAD"}}
    return found


async def knock(
    world: World, contract: Contract, operation: Operation, *, headers: Any = None, address: str = "127.0.0.1"
) -> httpx2.Response:
    """A request without credentials and body: limits count it, and nothing else comes of it."""
    path = operation.path.replace("{", "").replace("}", "")
    async with world.client(contract.system, address) as client:
        return await client.request(operation.method, path, headers=headers)


async def use_up(world: World, contract: Contract, limit: dict[str, Any], number: int | None = None) -> None:
    """All that the limit admits, none of it refused."""
    first = contract.operations[limit["operations"][0]]
    for _ in range(number or limit["number"]):
        assert (await knock(world, contract, first)).status_code != 429


def answer_of(rule: dict[str, Any]) -> Line:
    """The answer that a rule of the file gives, whatever else it says."""
    return Line(
        **{key: rule[key] for key in ("status", "code", "message", "details", "headers", "body") if key in rule}
    )
