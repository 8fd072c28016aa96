"""Reads a contract file and plays its lines against a running world.

A file lists operations. Each has a documented request, the answer to it (`success`), and variations of the
request: `also` (answered well) and `refused`. What stands under `auth` and `json requests` is refused by each
operation of that kind. The words of a line:

given    what happens before; each step is a method of Story, after the steps of the operation itself
caller   whose credentials the request carries: user, admin, unverified admin; else the one of `auth`
send     how the request differs: json and headers (merged; null removes a header), path, query, without (a
         field), raw (the body as it stands)
status   or `code`, which implies one; a refusal's body is the file's `refusal` with this `code`, `message` and
         `details`; a key of it with a `?` is there only where the line says it
body     keys and values, all of them; `<word>` is a type or a shape; "/…/" a pattern; a bare word is a shape
shows    some values, by path: `users.*.username` is a list, `#` its length
headers  of the answer, beside those of `every answer`; `cookies` that it sets; `type` of its content
contains texts that the body has; `lacks`: has not
fresh    credentials that differ from those sent
mail     how many mails the address has now, and what one of them contains
offline  the page loads nothing from another host, and all that it loads is there
except_for  operations that do not refuse this

A document with several services has a file for each; accounts are made and sign in where its accounts do.

In every value {name.attribute} is replaced: `caller`, `other` (the last account made), accounts by name,
`elsewhere`, `mailed_token`, `service_key`; answers that were kept by {name[key]}: `order`, `payment`.
{nothing:x>51} is 51 times x.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import yaml
from httpx2 import Response
from typeid import TypeID

from tests.contracts import expect
from tests.world import LOGINS

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Line:
    """One request and its answer."""

    name: str = ""
    given: list[Any] = field(default_factory=list)
    caller: str | None = None
    send: dict[str, Any] = field(default_factory=dict)
    status: int | None = None
    code: str | None = None
    message: str = "<string>"
    details: Any = "<object or null>"
    body: Any = None
    shows: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, dict[str, Any]] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    mail: dict[str, Any] | None = None
    type: str | None = None
    contains: list[str] = field(default_factory=list)
    lacks: list[str] = field(default_factory=list)
    offline: bool = False
    except_for: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Operation:
    """One documented operation, or one that Bedplate adds."""

    name: str
    method: str
    path: str
    auth: str
    request: dict[str, Any]
    success: dict[str, Any]
    caller: str | None = None
    given: list[Any] = field(default_factory=list)
    also: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    addition: bool = False


class Contract:
    """One file."""

    def __init__(self, file: Path) -> None:
        self.text: dict[str, Any] = yaml.load(file.read_text(), yaml.CSafeLoader)
        self.system: str = self.text["system"]
        self.operations = {line["name"]: Operation(**line) for line in self.text["operations"]}

    def __str__(self) -> str:
        return self.system

    def auth(self, name: str) -> dict[str, Any]:
        """What requests of this kind carry, and when they are refused. `like` names a kind to build on."""
        kind = self.text["auth"][name]
        model = self.auth(kind["like"]) if "like" in kind else {}
        return {**model, **kind, "refused": model.get("refused", []) + kind.get("refused", [])}

    def lines(self, operation: Operation) -> Iterator[tuple[str, Line]]:
        """The operation's own lines, with their whole names."""
        yield operation.name, Line(**operation.success)
        for line in operation.also:
            yield f"{operation.name}, {line['name']}", Line(**line)
        for line in operation.refused:
            yield f"{operation.name} {line['name']} is refused", Line(**line)

    def lines_of_its_kind(self, operation: Operation) -> Iterator[tuple[str, Line]]:
        """What it refuses because all operations with such credentials, or all that take JSON, refuse it."""
        bodies = self.text["json requests"]["refused"] if "json" in operation.request else []
        for line in self.auth(operation.auth)["refused"] + bodies:
            if operation.name not in line.get("except_for", []):
                yield f"{operation.name} {line['name']} is refused", Line(**line)

    def expected_status(self, line: Line) -> int:
        """The status, said outright or by the code."""
        return line.status or int(self.text["codes"][line.code]["status"])

    def expected_body(self, line: Line) -> Any:
        """The body to compare with, or None where none is documented."""
        if line.body is None and self.expected_status(line) >= 400:
            known = self.text.get("codes", {}).get(line.code, {})
            words = {"code": line.code, "message": line.message, "details": line.details, "error": known.get("error")}
            words["request_id"] = "{request_id}"
            if line.message == Line.message:
                words["message"] = known.get("message", line.message)
            return {
                key.removesuffix("?"): line.details if value == "{details}" else value.format(**words)
                for key, value in self.text["refusal"].items()
                if not (key.endswith("?") and line.details == Line.details)
            }
        return self.text["shapes"][line.body] if isinstance(line.body, str) else line.body


CALLERS: dict[str, dict[str, Any]] = {
    "user": {},
    "admin": {"role": "admin"},
    "unverified admin": {"role": "admin", "email_verified": False},
}
ORDERED = [
    {"productId": "prod-1", "quantity": 2, "price": 29.99},
    {"productId": "prod-2", "quantity": 1, "price": 15.50},
]
CONTRACTS = [Contract(file) for file in sorted(FOLDER.glob("*.yaml"))]


@dataclass
class Party:
    """Somebody with an account and the credentials of one sign-in."""

    access_token: str
    refresh_token: str = ""
    id: str = ""
    email: str = ""
    username: str = ""
    password: str = ""

    @property
    def tampered_token(self) -> str:
        head, claims, signature = self.access_token.split(".")
        return f"{head}.{claims}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"

    @property
    def unsigned_token(self) -> str:
        head = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
        return f"{head}.{self.access_token.split('.')[1]}."


class Story:
    """One test: what has happened so far, who is there, and the next request."""

    def __init__(self, world: Any, contract: Contract) -> None:
        self.world = world
        self.contract = contract
        self.names: dict[str, Any] = {"nothing": ""}
        self._admins: dict[str, Any] = {}
        self.last: Response | None = None

    async def set(self, operation: Operation, line: Line) -> None:
        """Everything up to the request itself."""
        caller = line.caller or operation.caller or self.contract.auth(operation.auth).get("caller")
        if caller:
            self.names["caller"] = await self._party(**CALLERS[caller])
        for step in [*operation.given, *line.given]:
            if isinstance(step, str):
                step = {step: None}
            (name, value), *rest = step.items()
            await getattr(self, name.replace(" ", "_"))(self.filled(value), **dict(rest))

    async def ask(self, operation: Operation, send: Mapping[str, Any], by: str = "caller") -> Response:
        """The operation's request with these differences, with the credentials of `by`."""
        request = {**operation.request, **send}
        as_caller = {**self.names, "caller": self.names.get(by)}
        credentials = self.contract.auth(operation.auth).get("headers", {})
        headers = {**credentials, **operation.request.get("headers", {}), **send.get("headers", {})}
        content = request.get("raw")
        if content is None and "json" in operation.request:
            fields = {**operation.request["json"], **send.get("json", {})}
            fields.pop(send.get("without"), None)
            content = json.dumps(_filled(fields, as_caller))
        if content is not None:
            headers = {"Content-Type": "application/json", **headers}
        path, query, headers = _filled([request.get("path", {}), request.get("query", {}), headers], as_caller)
        async with self.world.client(self.contract.system) as client:
            self.last = await client.request(
                operation.method,
                operation.path.format(**path),
                params=query,
                headers={key: value for key, value in headers.items() if value is not None},
                content=content,
            )
        return self.last

    async def check(self, line: Line, response: Response) -> None:
        """Fails with every difference between the line and the answer."""
        status = self.contract.expected_status(line)
        assert response.status_code == status, f"{response.status_code}, not {status}: {response.text[:500]}"
        self.names["request_id"] = response.headers.get("x-request-id")
        shapes = self.contract.text["shapes"]
        wrong: list[str] = []
        for name, value in {**self.contract.text["every answer"]["headers"], **line.headers}.items():
            wrong += expect.differences(value, response.headers.get(name), shapes, at=f"header {name}")
        body = self.contract.expected_body(line)
        kind = line.type or ("application/json" if body is not None or line.shows else "")
        if not response.headers.get("content-type", "").startswith(kind):
            wrong.append(f"content type {response.headers.get('content-type')!r}, not {kind}")
        if body is not None:
            wrong += expect.differences(self.filled(body), response.json(), shapes, at="body")
        for path, value in self.filled(line.shows).items():
            wrong += expect.differences(value, expect.at(path, response.json()), shapes, at=path)
        if line.cookies:
            wrong += expect.differences(line.cookies, expect.cookies(response), shapes, at="cookies")
        wrong += [f"no {text}" for text in line.contains if text not in response.text]
        wrong += [f"{text} is there" for text in self.filled(line.lacks) if text in response.text]
        if status == 204 and response.content:
            wrong.append("204 with a body")
        for name in line.fresh:
            if credentials(response)[name] == getattr(self.names["caller"], name):
                wrong.append(f"{name} is the old one")
        if line.mail:
            wrong += await self._mail(**self.filled(line.mail))
        if line.offline:
            wrong += await self._loaded(response.text)
        assert not wrong, "\n".join(wrong)

    def filled(self, value: Any) -> Any:
        """The value with every {name} in it replaced."""
        return _filled(value, self.names)

    # The steps of `given`.

    async def account(self, values: dict[str, str], name: str = "other") -> None:
        """One more account."""
        self.names[name] = await self._party(**values)

    async def accounts(self, names: list[str]) -> None:
        """Accounts in this order of creation, a second apart."""
        for name in names:
            self.world.clock.advance(1)
            await self.account({"email": f"{name}@example.com", "username": name}, name)

    async def seconds_pass(self, seconds: int) -> None:
        self.world.clock.advance(seconds)

    async def do(self, name: str, *, send: Any = MappingProxyType({}), by: str = "caller", status: int = 0) -> None:
        """Another operation, which succeeds unless another status is said."""
        operation = self.contract.operations[name]
        response = await self.ask(operation, send, by)
        assert response.status_code == (status or operation.success["status"]), response.text

    async def keep(self, name: str) -> None:
        """The last answer, under this name."""
        assert self.last is not None
        self.names[name] = self.last.json()

    async def take(self, what: str, aside: str = "caller") -> None:
        """The tokens of the last answer become the caller's, or those of a second party."""
        assert what == "tokens" and self.last is not None
        self.names[aside] = replace(self.names["caller"], **credentials(self.last))

    async def sign_in_to(self, system: str, by: str = "caller") -> None:
        """One more session of the same account, in this system; `elsewhere` holds its tokens."""
        party = self.names[by]
        place, path, login = LOGINS[system]
        async with self.world.client(place) as client:
            response = await client.post(path, json={login: party.email, "password": party.password})
        assert response.status_code == 200, response.text
        self.names["elsewhere"] = Party(**credentials(response))

    async def verify(self, who: str) -> None:
        """Their e-mail address, by the mail they got."""
        await self.read_the_token_mailed_to(who)
        async with self.world.client("cobalt") as client:
            answer = await client.post("/api/auth/verify-email", json={"token": self.names["mailed_token"]})
        assert answer.status_code == 200, answer.text

    async def ask_for_a_reset(self, who: str) -> None:
        async with self.world.client("cobalt") as client:
            answer = await client.post("/api/auth/forgot-password", json={"email": self.names[who].email})
        assert answer.status_code == 200, answer.text
        await self.read_the_token_mailed_to(who, to="reset-password")

    async def read_the_token_mailed_to(self, who: str, to: str = "verify-email") -> None:
        """The newest token that verifies the address, or resets the password."""
        text = "\n".join(mail.text for mail in await self.world.mails(self.names[who].email))
        match = re.search(rf"/{to}\?token=([\w-]+)", text)
        assert match, text
        self.names["mailed_token"] = match[1]

    async def disable(self, who: str) -> None:
        await self._switch(who, "disable")

    async def enable(self, who: str) -> None:
        await self._switch(who, "enable")

    async def delete(self, who: str) -> None:
        admin = await self._admin("pantstack")
        users = (await admin.get("/api/v1/users")).json()
        found = next(user["id"] for user in users if user["email"] == self.names[who].email)
        answer = await admin.delete(f"/api/v1/users/{found}")
        assert answer.status_code == 204, answer.text

    async def a_service_key(self, _: None) -> None:
        self.names["service_key"] = await self.world.service_key()

    async def sign_out(self, who: str) -> None:
        """Of all services of the document."""
        party = self.names[who]
        await self._ask_service("user-service", "POST", "/api/auth/logout", {"refresh_token": party.refresh_token}, who)

    async def an_order(self, of: str, items: Any = ORDERED, name: str = "order") -> None:
        body = {"userId": self.names[of].id, "items": items}
        self.names[name] = await self._ask_service("order-service", "POST", "/api/orders", body, of)

    async def a_payment(self, of: str, card: str = "4111111111111111", name: str = "payment") -> None:
        """Of their order, in work."""
        order = self.names["order"]
        method = {"type": "credit_card", "cardNumber": card, "expiryMonth": "12", "expiryYear": "2025", "cvv": "123"}
        body = {"orderId": order["id"], "userId": self.names[of].id, "amount": order["totalAmount"], "currency": "USD"}
        body["paymentMethod"] = method
        self.names[name] = await self._ask_service("payment-service", "POST", "/api/payments", body, of)

    async def a_file(self, of: str, text: str = "Cats sleep.", filename: str = "cats.txt", name: str = "file") -> None:
        """Of theirs, uploaded."""
        async with self.world.client("pynode") as client:
            headers = {"Authorization": f"Bearer {self.names[of].access_token}"}
            sent = {"file": (filename, text.encode(), "text/plain")}
            answer = await client.post("/api/files/upload", files=sent, headers=headers)
        assert answer.status_code == 201, answer.text
        self.names[name] = answer.json()
        self.names["link"] = dict(parse_qsl(urlsplit(answer.json()["url"]).query))

    async def events_are_delivered(self, _: None) -> None:
        await self.world.deliver()

    async def a_paid_order(self, of: str) -> None:
        await self.an_order(of)
        await self.a_payment(of)
        await self.world.deliver()

    async def the_order_goes_to(self, statuses: list[str]) -> None:
        for status in statuses:
            path = f"/api/orders/{self.names['order']['id']}/status"
            await self._ask_service("order-service", "PUT", path, {"status": status})

    async def the_order_is_cancelled(self, _: None) -> None:
        await self._ask_service("order-service", "POST", f"/api/orders/{self.names['order']['id']}/cancel", None)

    async def a_refund(self, amount: float) -> None:
        path = f"/api/payments/{self.names['payment']['id']}/refund"
        await self._ask_service("payment-service", "POST", path, {"amount": amount, "reason": "Test"})

    # What these are made of.

    async def _party(self, **values: Any) -> Party:
        account = await self.world.user(self.contract.system, **values)
        if values == CALLERS["admin"]:
            self._admins[self.contract.system] = account.client
        party = Party(**{name: getattr(account, name) for name in Party.__dataclass_fields__})
        if self.contract.system == "pantstack":
            party.id = str(TypeID.from_uuid(UUID(party.id), "usr"))
        return party

    async def _ask_service(self, service: str, method: str, path: str, body: Any, by: str = "") -> Any:
        """What a service answers to somebody, or to nobody in particular."""
        headers = {"Authorization": f"Bearer {self.names[by].access_token}"} if by else {}
        async with self.world.client(service) as client:
            answer = await client.request(method, path, json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def _admin(self, system: str) -> Any:
        """The administrator, of whom there is one, so that numbers of accounts can be told."""
        if system not in self._admins:
            self._admins[system] = await self.world.admin(system)
        return self._admins[system]

    async def _switch(self, who: str, how: str) -> None:
        admin = await self._admin("cobalt")
        found = await admin.get("/api/admin/users", params={"search": self.names[who].email})
        answer = await admin.patch(f"/api/admin/users/{found.json()['users'][0]['id']}/{how}")
        assert answer.status_code == 200, answer.text

    async def _mail(self, to: str, count: int, contains: str = "") -> list[str]:
        mails = await self.world.mails(to)
        if len(mails) != count:
            return [f"{len(mails)} mails to {to}, not {count}"]
        return [f"no mail with {contains}"] if contains and not any(contains in mail.text for mail in mails) else []

    async def _loaded(self, page: str) -> list[str]:
        sources = re.findall(r"""(?:src|href)=["']([^"']+)["']|url: *["']([^"']+)["']""", page)
        wrong = []
        for source in {first or second for first, second in sources}:
            if re.match(r"(https?:)?//", source):
                wrong.append(f"the page loads {source}")
            elif not source.startswith(("data:", "#")):
                async with self.world.client(self.contract.system) as client:
                    if (await client.get(source)).status_code != 200:
                        wrong.append(f"the page loads {source}, which is not there")
        return wrong


def credentials(response: Response) -> dict[str, str]:
    """The two tokens of an answer, the refresh token from the body or from the cookie."""
    body = response.json()
    refresh = body.get("refresh_token") or expect.cookies(response)["refresh_token"]["value"]
    return {"access_token": body["access_token"], "refresh_token": refresh}


def _filled(value: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        return value.format_map(names)
    if isinstance(value, dict):
        return {key: _filled(item, names) for key, item in value.items()}
    return [_filled(item, names) for item in value] if isinstance(value, list) else value
