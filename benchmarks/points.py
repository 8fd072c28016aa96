"""What is measured: the requests of each point, and what their answers have to be."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from bedplate.kernel.ids import prefixed
from benchmarks.deployments import ADMIN, PASSWORD, Deployment, account
from benchmarks.load import Traffic
from benchmarks.servers import Server

BURST = 256
DIFFERENT = 1000
READERS = 8


@dataclass(frozen=True)
class Point:
    """`aim`: the least share of the bare route's rate, with one worker on SQLite."""

    name: str
    title: str
    aim: float | None = None


POINTS = (
    Point("health", "health"),
    Point("read", "authenticated read", 0.60),
    Point("user", "one user by id"),
    Point("list", "list of 20 with total", 0.24),
    Point("write", "one-row write", 0.28),
    Point("login", "login"),
)
HEALTH = b"GET /health HTTP/1.1\r\nHost: bench\r\n\r\n".decode()
BARE = Traffic([HEALTH], 200, [len('{"status":"healthy"}')])


class Client:
    """Signs in at a running server, and makes the traffic of each point from what it answers.

    Reads go to the middle of the accounts, writes to those after them and sign-ins to the oldest, so that no point
    changes the length of another's answers.
    """

    def __init__(self, server: Server, deployment: Deployment) -> None:
        self._http = httpx2.Client(base_url=f"http://127.0.0.1:{server.port}")
        self._users = len(deployment.ids)
        self._public = [prefixed("usr", each) for each in deployment.ids]
        readers = [self._sign_in("/cobalt/api/auth/login", "username", account(1 + n)) for n in range(READERS)]
        self._readers = readers
        self._cobalt_admin = self._sign_in("/cobalt/api/auth/login", "username", ADMIN)
        self._pantstack_admin = self._sign_in("/pantstack/api/v1/auth/login", "email", ADMIN)

    def traffic(self, point: str) -> Traffic:
        """The requests of a point. The first is sent and looked at; the others must be answered at its length."""
        made: Callable[[], Traffic] = getattr(self, f"_{point}")
        return made()

    def _health(self) -> Traffic:
        return self._like_first([request("GET", "/cobalt/health")], lambda body: body == {"status": "healthy"})

    def _read(self) -> Traffic:
        requests = [request("GET", "/cobalt/api/auth/me", token) for token in self._readers]
        return self._like_first(requests, lambda body: body["email"] == account(1))

    def _user(self) -> Traffic:
        third = self._users // 3
        ids = self._public[third : min(2 * third, third + DIFFERENT)]
        requests = [request("GET", f"/pantstack/api/v1/users/{each}", self._pantstack_admin) for each in ids]
        return self._like_first(requests, lambda body: body["id"] == ids[0])

    def _list(self) -> Traffic:
        requests = [request("GET", "/cobalt/api/admin/users?per_page=20", self._cobalt_admin)]
        return self._like_first(requests, lambda body: len(body["users"]) == 20 and body["total"] == self._users)

    def _write(self) -> Traffic:
        last = 2 * (self._users // 3)
        ids = self._public[last : min(self._users - 20, last + DIFFERENT)]
        requests = [
            request("PUT", f"/pantstack/api/v1/users/{each}", self._pantstack_admin, {"name": f"Nome {number:05}"})
            for number, each in enumerate(ids)
        ]
        made = self._like_first(requests, lambda body: body["name"] == "Nome 00000")
        # A time without microseconds is printed without them: ".123456" fewer, once in a million answers.
        return Traffic(made.requests, made.status, [made.lengths[0] - 7, *made.lengths])

    def _login(self) -> Traffic:
        count = min(BURST, self._users // 3 - READERS - 1)
        logins = [account(1 + READERS + number % count) for number in range(BURST)]
        path = "/cobalt/api/auth/login"
        requests = [request("POST", path, body={"username": each, "password": PASSWORD}) for each in logins]
        return self._like_first(requests, lambda body: bool(body["access_token"]))

    def _like_first(self, requests: Sequence[str], right: Callable[[Any], bool]) -> Traffic:
        head, _, body = requests[0].partition("\r\n\r\n")
        method, path, _ = head.split("\r\n")[0].split(" ")
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        answer = self._http.request(method, path, headers=headers, content=body)
        if answer.status_code != 200 or not right(answer.json()):
            raise RuntimeError(f"{method} {path} answered {answer.status_code}: {answer.text[:200]}")
        return Traffic(list(requests), 200, [len(answer.content)])

    def _sign_in(self, path: str, field: str, email: str) -> str:
        answer = self._http.post(path, json={field: email, "password": PASSWORD})
        answer.raise_for_status()
        token: str = answer.json()["access_token"]
        return token


def request(method: str, path: str, token: str = "", body: object = None) -> str:
    """As it is sent, with a bearer token and a JSON body if there are any."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    content = ""
    if body is not None:
        content = json.dumps(body)
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", content])
