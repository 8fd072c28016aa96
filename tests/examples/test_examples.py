"""The examples that the documents print, unchanged, against `bedplate serve` on its documented port."""

import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.types import Receive, Scope, Send

from bedplate import compose
from bedplate.kernel.clock import Clock
from bedplate.kernel.settings import Settings
from tests.processes import COMMAND, Server, command, environment

HERE = Path(__file__).parent
ADDRESS = "http://localhost:8000"

needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
Serve = Callable[[str], Server]
PORTS = {"pynode": (3000, 3001)}


class DocumentedServer(Server):
    """As a reader starts it: no port is named."""

    def __init__(self, folder: Path, system: str) -> None:
        super().__init__(folder, "serve", system)
        self._line = [COMMAND, "serve", system, "--data", str(self.data)]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts a system at its documented address, its data in tmp_path."""
    with ExitStack() as servers:

        def start(system: str) -> Server:
            for port in PORTS.get(system, (8000,)):
                must_be_free(port)
            return servers.enter_context(DocumentedServer(tmp_path, system))

        yield start


def must_be_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            pytest.skip(f"port {port}, which the documents print, is taken on this machine")


@pytest.fixture(scope="session")
def node_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Dev-PyNode's JavaScript and the packages that it is for."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    shutil.copytree(HERE / "pynode", folder, dirs_exist_ok=True)
    line = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=50)
    except subprocess.TimeoutExpired:
        pytest.skip("npm does not get the packages in time")
    if done.returncode:
        pytest.skip(f"npm cannot get the packages: {done.stderr.strip()[:200]}")
    return folder


def curl(line: Sequence[str], folder: Path) -> tuple[int, Any]:
    """Status and body of a command that calls curl. Its options are in a file, so that lines stay as printed."""
    (folder / ".curlrc").write_text('silent\nshow-error\nwrite-out = "\\n%{http_code}"\n')
    home = environment(CURL_HOME=str(folder))
    done = subprocess.run(line, cwd=folder, env=home, capture_output=True, text=True, timeout=20, check=True)
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body) if body.startswith("{") else body


def sections(text: str, mark: str) -> dict[str, str]:
    """The parts of a file of examples, by the headings that begin with the mark."""
    parts = re.split(rf"^{mark} (.+)\n", text, flags=re.MULTILINE)[1:]
    return {heading: part.strip() for heading, part in zip(parts[::2], parts[1::2], strict=True)}


@needs_curl
def test_the_curl_examples_of_cobalt(serve: Serve, tmp_path: Path) -> None:
    serve("cobalt")
    examples = sections((HERE / "cobalt/curl.sh").read_text(), "#")

    def run(heading: str, token: str = "") -> tuple[int, Any]:
        return curl(["sh", "-c", examples.pop(heading).replace("<access_token>", token)], tmp_path)

    status, registered = run("Register User")
    assert (status, registered.keys()) == (201, {"access_token", "token_type", "expires_in"})
    status, tokens = run("Login")
    assert (status, tokens["token_type"], tokens["expires_in"]) == (200, "Bearer", 900)
    status, user = run("Get Current User", tokens["access_token"])
    assert (status, user["username"], user["email"]) == (200, "alice", "alice@example.com")
    cookies = (tmp_path / "cookies.txt").read_text()
    status, refreshed = run("Refresh Token")
    assert status == 200
    assert refreshed["access_token"] != tokens["access_token"]
    assert (tmp_path / "cookies.txt").read_text() != cookies
    assert not examples


@needs_node
@pytest.mark.parametrize("story", ["sign_in.mjs", "api_request.mjs"])
def test_the_javascript_examples_of_cobalt(serve: Serve, story: str) -> None:
    serve("cobalt")
    done = subprocess.run(["node", HERE / "cobalt" / story], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


@needs_curl
def test_the_http_examples_of_pantstack(serve: Serve, tmp_path: Path) -> None:
    serve("pantstack")
    examples = sections((HERE / "pantstack/requests.http").read_text(), "###")
    used = set()

    def run(heading: str, **words: str) -> tuple[int, Any]:
        used.add(heading)
        head, _, body = examples[heading].partition("\n\n")
        first, *headers = re.sub(r"[<{](\w+)[>}]", lambda match: words[match[1]], head).split("\n")
        method, path = first.split(" ")
        options = [option for header in headers for option in ("--header", header)]
        options += ["--data", body] if body else []
        return curl(["curl", "--request", method, *options, f"{ADDRESS}{path}"], tmp_path)

    status, health = run("Health Check")
    assert (status, health["status"], health["version"]) == (200, "healthy", "1.0.0")
    status, metrics = run("Metrics")
    assert status == 200
    assert '\nhttp_requests_total{method="GET",endpoint="/health"} ' in metrics
    status, created = run("Create User")
    assert (status, created["email"], created["name"]) == (201, "user@example.com", "John Doe")
    assert created["id"].startswith("usr_")
    status, tokens = run("Login")
    assert (status, tokens["token_type"], tokens["expires_in"]) == (200, "bearer", 3600)
    status, user = run("Get User", user_id=created["id"], token=tokens["access_token"])
    assert (status, user) == (200, created)
    status, tokens = run("Refresh Token", refresh_token=tokens["refresh_token"])
    assert (status, tokens["token_type"], tokens["expires_in"]) == (200, "bearer", 3600)
    assert run("Logout", token=tokens["access_token"]) == (204, "")
    _, tokens = run("Login")
    status, user = run("Update User", user_id=created["id"], token=tokens["access_token"])
    assert (status, user["name"], user["email"]) == (200, "Jane Doe", "jane@example.com")
    assert run("Delete User", user_id=created["id"], token=tokens["access_token"]) == (204, "")

    admin = administrator(tmp_path)
    status, system = run("Get System Status", admin_token=admin)
    assert (status, system.keys()) == (200, {"services", "database", "cache"})
    status, maintenance = run("Trigger Maintenance Mode", admin_token=admin)
    assert (status, maintenance["message"]) == (200, "System maintenance in progress")
    assert run("Create User")[0] == 503
    assert used == examples.keys()


def test_the_unit_test_example_of_pantstack(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data=tmp_path, database_url=None, redis_url=None)
    compose.prepare(settings)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # The example does not start its application, so the modules are open for one request at a time.
        async with compose.running(settings, Clock(), deliver=False) as runtime:
            await compose.application("pantstack", runtime)(scope, receive, send)

    runpy.run_path(str(HERE / "pantstack/unit_test.txt"), {"app": app})["test_create_user"]()


def test_the_service_client_example_of_pantstack(serve: Serve, tmp_path: Path) -> None:
    serve("pantstack")
    key = json.loads(command(tmp_path, "keys", "create", "orders", "--json").stdout)["key"]
    known = {"PANTSTACK_API_KEY": key, "PYTHONPATH": str(HERE.parents[1] / "compat")}
    request = {"email": "user@example.com", "name": "John Doe", "password": "secure_password"}
    user = httpx2.post(f"{ADDRESS}/api/v1/users", json=request).json()

    def order(user_id: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, HERE / "pantstack/order_service.py", user_id]
        return subprocess.run(line, env=environment(**known), capture_output=True, text=True, timeout=30)

    found = order(user["id"])
    assert found.returncode == 0, found.stderr
    assert order("usr_00000000000000000000000000").stderr.endswith("ValueError: User not found\n")


def administrator(folder: Path) -> str:
    """An access token of an administrator, made by the command line beside the running server."""
    password = "secure_password"
    made = command(folder, "admin", "create", "admin@example.com", "--password-stdin", text=f"{password}\n")
    assert made.returncode == 0, made.stderr
    credentials = {"email": "admin@example.com", "password": password}
    return str(httpx2.post(f"{ADDRESS}/api/v1/auth/login", json=credentials).json()["access_token"])


def signed_in(port: int) -> str:
    """An access token of a new account of Dev-PyNode."""
    body = {"email": "user@example.com", "password": "password123", "name": "John Doe"}
    answer = httpx2.post(f"http://localhost:{port}/api/auth/register", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["access_token"])


def is_the_documented_answer(answer: Any) -> bool:
    documented = {"id", "message", "model", "usage", "created_at"}
    return documented <= answer.keys() and answer["model"] == "gpt-4" and answer["id"].startswith("chat-")


both_ports = pytest.mark.parametrize("port", PORTS["pynode"])


@both_ports
def test_the_python_example_of_pynode(
    serve: Serve, tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    serve("pynode")
    snippet = tmp_path / "chat.py"
    snippet.write_text((HERE / "pynode/chat.txt").read_text().replace(":3000", f":{port}"))
    ran = runpy.run_path(str(snippet), {"token": signed_in(port)})
    assert ran["response"].status_code == 200
    assert is_the_documented_answer(ran["response"].json())
    assert "Hello, AI!" in capsys.readouterr().out


@needs_curl
@both_ports
def test_the_curl_example_of_pynode(serve: Serve, tmp_path: Path, port: int) -> None:
    serve("pynode")
    printed = (HERE / "pynode/curl.sh").read_text().replace(":3000", f":{port}")
    status, answer = curl(["sh", "-c", f"TOKEN={signed_in(port)}\n{printed}"], tmp_path)
    assert status == 200
    assert is_the_documented_answer(answer)


@needs_node
@both_ports
def test_the_javascript_example_of_pynode(serve: Serve, node_packages: Path, port: int) -> None:
    serve("pynode")
    logged = node(node_packages, "run.mjs", "chat.js", str(port), signed_in(port))
    [[answer]] = [json.loads(line) for line in logged.splitlines()]
    assert is_the_documented_answer(answer)


@needs_node
@both_ports
def test_the_websocket_example_of_pynode(serve: Serve, node_packages: Path, port: int) -> None:
    serve("pynode")
    logged = node(node_packages, "run.mjs", "websocket.js", str(port), "")
    lines = [json.loads(line) for line in logged.splitlines()]
    assert lines[0] == ["Connected to WebSocket"]
    assert {words for words, _ in lines[1:]} == {"Received:"}
    answer = lines[-1][1]
    assert answer["type"] == "chat_response"
    assert {"id", "message", "model"} <= answer["data"].keys()
    assert answer["data"]["model"] == "gpt-4"


@needs_node
def test_the_javascript_client_of_openai(serve: Serve, node_packages: Path) -> None:
    serve("pynode")
    token = signed_in(3000)
    assert node(node_packages, "openai.mjs", "http://localhost:3000/v1", token) == "done\n"


def node(folder: Path, *line: str) -> str:
    """What a script says."""
    done = subprocess.run(["node", *line], cwd=folder, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout
