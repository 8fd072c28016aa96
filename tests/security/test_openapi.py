"""The OpenAPI documents tell the truth: no request of schemathesis gets an answer that they do not declare."""

import base64
import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests import factories
from tests.factories import PASSWORD
from tests.processes import Server, command

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@dataclass(frozen=True)
class Sign:
    """Where accounts of a system are made and sign in, below the root of the process with every system, and what of
    the login is sent."""

    up: str
    log_in: str
    mount: str
    fields: tuple[str, ...] = ("username", "email", "name", "password")


_COMMERCE = ("/commerce/users/api/users", "/commerce/users/api/auth/login")
SYSTEMS = {
    "cobalt": Sign("/cobalt/api/auth/register", "/cobalt/api/auth/login", "/cobalt"),
    "pantstack": Sign("/pantstack/api/v1/users", "/pantstack/api/v1/auth/login", "/pantstack"),
    "pynode": Sign("/pynode/api/auth/register", "/pynode/api/auth/login", "/pynode", ("email", "password")),
    "user-service": Sign(*_COMMERCE, "/commerce/users", ("email", "password")),
    "order-service": Sign(*_COMMERCE, "/commerce/orders", ("email", "password")),
    "payment-service": Sign(*_COMMERCE, "/commerce/payments", ("email", "password")),
}
ROLES = ("anonymous", "user", "admin")


@dataclass
class Served:
    """One running system and how to be somebody in it."""

    system: str
    server: Server
    folder: Path

    @property
    def url(self) -> str:
        return f"{self.server.url}{SYSTEMS[self.system].mount}"

    def headers(self, role: str) -> dict[str, str]:
        """Fresh credentials of this role: what is tried may end them."""
        if role == "anonymous":
            return {}
        email = factories.email(role)
        if role == "admin":
            made = self._create_admin(email)
            assert made.returncode == 0, made.stderr
        else:
            self._register(email)
        sign = SYSTEMS[self.system]
        login = {"username": email, "email": email, "password": PASSWORD}
        login = {name: value for name, value in login.items() if name in sign.fields}
        answer = httpx2.post(f"{self.server.url}{sign.log_in}", json=login)
        assert answer.status_code == 200, answer.text
        refresh = answer.json().get("refresh_token") or answer.cookies["refresh_token"]
        return {"Authorization": f"Bearer {answer.json()['access_token']}", "Cookie": f"refresh_token={refresh}"}

    def known(self, headers: dict[str, str]) -> dict[str, str]:
        """Ids that exist, by the names of parameters and fields; of whoever sends these headers."""
        if self.system == "pynode":
            return self._known_of_pynode(headers or self.headers("user"))
        if self.system not in ("user-service", "order-service", "payment-service"):
            return {}
        token = (headers or self.headers("user"))["Authorization"].removeprefix("Bearer ")
        claims = token.split(".")[1]
        user_id = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["sub"]
        order = {"userId": user_id, "items": [{"productId": "p", "quantity": 1, "price": 1.0}]}
        paid, unpaid = (self._made("orders/api/orders", order)["id"] for _ in range(2))
        payment = {"orderId": paid, "userId": user_id, "amount": 1.0, "currency": "USD"}
        made = self._made("payments/api/payments", {**payment, "paymentMethod": {"type": "paypal"}})
        ids = {"user_id": user_id, "order_id": paid, "payment_id": made["id"]}
        return {**ids, "userId": user_id, "orderId": unpaid, "paymentId": made["id"]}

    def _known_of_pynode(self, headers: dict[str, str]) -> dict[str, str]:
        token = {"Authorization": headers["Authorization"]}
        message = httpx2.post(f"{self.url}/api/chat", json={"message": "Hello"}, headers=token).json()
        sent = {"file": ("a.txt", b"text", "text/plain")}
        file = httpx2.post(f"{self.url}/api/files/upload", files=sent, headers=token).json()
        return {"message_id": message["id"], "file_id": file["id"], "model_id": "gpt-4", "model": "gpt-4"}

    def _made(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = httpx2.post(f"{self.server.url}/commerce/{path}", json=body)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def _create_admin(self, email: str) -> subprocess.CompletedProcess[str]:
        return command(self.folder, "admin", "create", email, "--password-stdin", text=f"{PASSWORD}\n")

    def _register(self, email: str) -> None:
        body = {"username": factories.username(), "name": "Test", "email": email, "password": PASSWORD}
        answer = httpx2.post(f"{self.server.url}{SYSTEMS[self.system].up}", json=body)
        assert answer.status_code == 201, answer.text


@pytest.fixture(scope="module", params=list(SYSTEMS))
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openapi")
    with Server(folder, "up", BEDPLATE_RATE_LIMIT_ENABLED="false") as server:
        yield Served(request.param, server, folder)
        assert "Traceback" not in server.log


def attack(operation: Any, mode: GenerationMode, headers: dict[str, str], known: dict[str, str], examples: int) -> int:
    """How many requests were sent and answered as declared. Those that fit the schema name `known` things."""
    tried = 0

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 100,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def answers_are_declared(case: Any) -> None:
        nonlocal tried
        tried += 1
        for part in (case.path_parameters, case.body) if not mode.is_negative else ():
            if isinstance(part, dict):
                part.update({name: known[name] for name in part.keys() & known.keys()})
        case.call_and_validate(headers=headers, checks=CHECKS)

    # An operation without parameters cannot be asked wrongly.
    with contextlib.suppress(*[Unsatisfiable] if mode.is_negative else []):
        answers_are_declared()
    return tried


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "examples", [4, pytest.param(300, marks=(pytest.mark.faults, pytest.mark.timeout(3600)))], ids=["few", "many"]
)
@pytest.mark.timeout(180)
def test_every_answer_is_declared(served: Served, role: str, examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    headers = served.headers(role)
    known = served.known(headers)
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        tried += sum(attack(operation, mode, headers, known, examples) for mode in GenerationMode)
        if operation.path.endswith(("logout", "maintenance")) or operation.method.upper() == "DELETE":
            headers = served.headers(role)
            end_maintenance(served)
    print(f"{served.system} as {role}: {tried} requests")
    assert tried > 8 * examples


def end_maintenance(served: Served) -> None:
    if served.system == "pantstack":
        path = f"{served.url}/api/v1/admin/maintenance"
        answer = httpx2.post(path, json={"enabled": False}, headers=served.headers("admin"))
        assert answer.status_code == 200


def test_every_operation_declares_the_documented_error(served: Served) -> None:
    document = httpx2.get(f"{served.url}/openapi.json").json()
    error = document["components"]["schemas"]["ErrorOut"]
    keys = {
        "cobalt": ["error"],
        "pynode": ["error", "message", "code"],
        "pantstack": ["error", "message", "details", "request_id", "timestamp"],
    }
    assert error["required"] == keys.get(served.system, ["code", "message", "error", "details"])
    reference = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorOut"}}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["responses"]["default"]["content"] == reference, f"{method} {path}"
            assert "422" not in operation["responses"], f"{method} {path}"
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])
