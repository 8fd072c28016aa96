"""What a process tells about itself, through the edge that every system stands behind."""

import asyncio
import json
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request

from bedplate.kernel.envelope import Envelope
from bedplate.kernel.errors import Failure, FieldError
from bedplate.kernel.http import System, application, edge, metrics_page
from bedplate.kernel.settings import Settings
from bedplate.kernel.telemetry import (
    FILES,
    REFRESH_SECONDS,
    REQUEST_ID,
    Metrics,
    configure_logging,
    forget_the_dead,
    shared_files,
)


class PlainEnvelope(Envelope):
    def body(self, failure: Failure) -> dict[str, str]:
        return {"problem": failure.message, "request_id": failure.request_id}

    def invalid(self, request: Request, fields: list[FieldError]) -> tuple[int, str]:
        return 400, "invalid"


@pytest.fixture
def app() -> FastAPI:
    made = application(PlainEnvelope(), docs_url="/docs", redoc_url="/redoc", tracing=None, title="Plain")

    @made.get("/things/{thing_id}")
    async def thing(thing_id: int) -> dict[str, str]:
        return {"request_id": REQUEST_ID.get()}

    @made.get("/defect")
    async def defect() -> None:
        raise ZeroDivisionError("with something private")

    return made


def labelled(app: FastAPI, labels: tuple[str, ...]) -> System:
    metrics = Metrics("plain", labels)
    app.get("/metrics", include_in_schema=False)(metrics_page(metrics))
    return System("plain", "Plain", app, PlainEnvelope(), metrics, "/docs")


async def calling(system: System) -> httpx2.AsyncClient:
    served = edge(system, None, Settings(_env_file=None))
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=served), base_url="http://testserver")


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with await calling(labelled(app, ("method", "endpoint", "status"))) as made:
        yield made


@contextmanager
def logged(capture: pytest.CaptureFixture[str]) -> Iterator[list[dict[str, Any]]]:
    """The lines that were logged in the block, when it has ended."""
    handlers, lines = logging.root.handlers[:], []
    configure_logging("INFO")
    try:
        yield lines
        lines += [json.loads(line) for line in capture.readouterr().err.splitlines()]
    finally:
        configure_logging("ERROR")
        logging.root.handlers[:] = handlers


async def counted(client: httpx2.AsyncClient, pattern: str) -> list[str]:
    page = (await client.get("/metrics")).text
    return [line for line in page.splitlines() if re.match(pattern, line)]


async def test_a_request_without_an_id_gets_one_and_each_another(client: httpx2.AsyncClient) -> None:
    answers = [await client.get("/things/1") for _ in range(3)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 3
    assert [answer.json()["request_id"] for answer in answers] == ids, "handlers know it"


@pytest.mark.parametrize(
    "sent", ["req-42", "a" * 128, "with spaces and (signs)", "0190b5c8-0000-7000-8000-000000000000"]
)
async def test_an_id_that_is_sent_is_echoed(client: httpx2.AsyncClient, sent: str) -> None:
    for path in ("/things/1", "/things/x", "/nothing", "/defect"):
        answer = await client.get(path, headers={"X-Request-ID": sent})
        assert answer.headers["x-request-id"] == sent
        assert answer.json()["request_id"] == sent


@pytest.mark.parametrize("sent", [b"", b"a" * 129, b"caf\xe9", b"tab\tbed", b"nul\0"])
async def test_an_id_that_is_none_is_replaced(client: httpx2.AsyncClient, sent: bytes) -> None:
    answer = await client.get("/things/1", headers=[(b"X-Request-ID", sent)])
    assert answer.headers["x-request-id"].encode("latin-1") != sent
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])


async def test_requests_are_counted_by_the_template_of_their_route(client: httpx2.AsyncClient) -> None:
    for number in range(3):
        await client.get(f"/things/{number}")
    await client.get("/things/word")
    assert await counted(client, "http_requests_total.*things") == [
        'http_requests_total{method="GET",endpoint="/things/{thing_id}",status="200"} 3.0',
        'http_requests_total{method="GET",endpoint="/things/{thing_id}",status="400"} 1.0',
    ]


async def test_unknown_paths_are_counted_as_one(client: httpx2.AsyncClient) -> None:
    for number in range(20):
        await client.get(f"/secret-{number}")
    assert await counted(client, "http_requests_total.*404") == [
        'http_requests_total{method="GET",endpoint="unmatched",status="404"} 20.0'
    ]


async def test_a_defect_is_counted_logged_and_answered_without_a_word_about_itself(
    client: httpx2.AsyncClient, capfd: pytest.CaptureFixture[str]
) -> None:
    with logged(capfd) as lines:
        answer = await client.get("/defect", headers={"X-Request-ID": "req-42"})
        await asyncio.sleep(0)
    assert answer.status_code == 500
    assert "private" not in answer.text
    assert await counted(client, "http_requests_total.*500")
    [line] = [line for line in lines if line["level"] == "error"]
    assert line["request_id"] == "req-42"
    assert "ZeroDivisionError" in line["exception"]


@pytest.mark.parametrize("labels", [("method", "endpoint"), ("status_code", "route", "method")])
async def test_labels_are_those_of_the_document_in_its_order(app: FastAPI, labels: tuple[str, ...]) -> None:
    async with await calling(labelled(app, labels)) as client:
        await client.get("/things/1")
        [line] = await counted(client, "http_requests_total.*things")
        assert tuple(re.findall(r'(\w+)="', line)) == labels
        buckets = await counted(client, "http_request_duration_seconds_bucket.*things")
        assert tuple(re.findall(r'(\w+)="', buckets[0])) == (*labels, "le")
        assert buckets[-1].endswith('le="+Inf"} 1.0')


async def test_the_metrics_page_is_text_that_prometheus_reads(client: httpx2.AsyncClient) -> None:
    await client.get("/things/1")
    page = await client.get("/metrics")
    assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(page.text)}
    assert families["http_requests"].type == "counter"
    assert families["http_request_duration_seconds"].type == "histogram"
    [total] = [each for each in families["http_requests"].samples if each.labels["endpoint"].startswith("/things")]
    assert total.value == 1
    [count] = [
        each
        for each in families["http_request_duration_seconds"].samples
        if each.name.endswith("_count") and each.labels["endpoint"].startswith("/things")
    ]
    assert count.value == 1


async def test_a_share_is_worked_out_on_each_page_and_is_whole_before_the_first(app: FastAPI) -> None:
    system = labelled(app, ("method", "endpoint"))
    done = system.metrics.counter("done", "Done", ["status"])
    system.metrics.share("done_well", "What was done well", "done", status="well")
    async with await calling(system) as client:
        assert await counted(client, "done_well") == ["done_well 1.0"]
        done.labels("well").inc(3)
        done.labels("badly").inc()
        assert await counted(client, "done_well") == ["done_well 0.75"]
        assert "# TYPE done_well gauge" in (await client.get("/metrics")).text


async def test_gauges_are_set_before_each_page_and_one_that_cannot_be_read_hides_no_other(app: FastAPI) -> None:
    system = labelled(app, ("method", "endpoint"))
    depth = system.metrics.gauge("depth", "Depth", ["of"])
    depth.labels("well").set(5)

    async def away() -> None:
        raise ConnectionError

    async def rising() -> None:
        depth.labels("tide").inc()

    system.metrics.refresh += [away, rising]
    async with await calling(system) as client:
        assert await counted(client, "depth") == ['depth{of="well"} 5.0', 'depth{of="tide"} 1.0']
        assert await counted(client, 'depth{of="tide"}') == ['depth{of="tide"} 2.0']


async def test_a_server_that_hangs_holds_up_the_page_for_a_second(app: FastAPI) -> None:
    system = labelled(app, ("method", "endpoint"))
    depth = system.metrics.gauge("depth", "Depth")

    async def hang() -> None:
        await asyncio.Event().wait()

    async def rise() -> None:
        depth.inc()

    system.metrics.refresh += [hang, rise]
    async with await calling(system) as client:
        began = time.monotonic()
        assert await counted(client, "depth") == ["depth 1.0"]
        assert time.monotonic() - began < REFRESH_SECONDS + 1


async def test_what_counts_requests_is_on_the_first_page(client: httpx2.AsyncClient) -> None:
    assert await counted(client, "http_requests_total") == [
        'http_requests_total{method="GET",endpoint="/metrics",status="200"} 0.0'
    ]


def test_gauges_of_processes_that_have_ended_leave_the_sums(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (os.getpid(), ended.pid):
        for kind in ("gauge_livesum", "counter"):
            (tmp_path / f"{kind}_{pid}.db").touch()
    forget_the_dead(tmp_path)
    left = {file.name for file in tmp_path.iterdir()}
    kept = {f"gauge_livesum_{os.getpid()}.db", f"counter_{os.getpid()}.db", f"counter_{ended.pid}.db"}
    assert left == kept, "what it has counted has happened"


def test_files_of_servers_that_were_killed_are_gone_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept = {f"{FILES}{os.getpid()}-other", f"{FILES}nobody-knows", f"{FILES}old"}
    for name in {*kept, f"{FILES}{ended.pid}-killed"}:
        (tmp_path / name).mkdir()
        (tmp_path / name / "counter_1.db").touch()
    with shared_files():
        used = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        assert {folder.name for folder in tmp_path.iterdir()} == {*kept, used.name}
    assert {folder.name for folder in tmp_path.iterdir()} == kept
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


async def test_a_system_without_documentation_has_no_pages_for_it() -> None:
    bare = application(PlainEnvelope(), docs_url="", redoc_url="/redoc", tracing=None, title="Plain")
    async with await calling(labelled(bare, ("method", "endpoint"))) as client:
        for path in ("/", "/docs", "/redoc", "/openapi.json", "/docs/assets/favicon.png"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/metrics")).status_code == 200


async def test_each_request_is_one_line_of_json(client: httpx2.AsyncClient, capfd: pytest.CaptureFixture[str]) -> None:
    secret = {"X-Request-ID": "req-42", "Authorization": "Bearer hunter2"}
    with logged(capfd) as lines:
        await client.get("/things/1?token=hunter2", headers=secret)
        await client.get("/nothing")
        await asyncio.sleep(0)  # the lines of one turn of the loop are written at its end
    first, second = [line for line in lines if line["message"] == "request"]
    assert first["request_id"] == "req-42"
    assert (first["method"], first["path"], first["status"], first["system"]) == ("GET", "/things/1", 200, "plain")
    assert (first["level"], second["status"]) == ("info", 404)
    assert first["timestamp"].endswith("Z")
    assert 0 <= first["duration_ms"] < 10_000
    assert "hunter2" not in str((first, second))


def test_a_line_masks_secrets_by_their_names(capfd: pytest.CaptureFixture[str]) -> None:
    secrets = ("password", "new_password", "api_key", "apikey", "refresh_token", "Authorization", "cookie", "card_cvv")
    with logged(capfd) as lines:
        logging.getLogger("bedplate.test").warning("told", extra={**dict.fromkeys(secrets, "hunter2"), "user": "alice"})
    [line] = lines
    assert line["user"] == "alice"
    assert {line[name] for name in secrets} == {"***"}


def test_libraries_warn_in_the_same_form(capfd: pytest.CaptureFixture[str]) -> None:
    with logged(capfd) as lines:
        logging.getLogger("some.library").warning("it is %s", "late")
        logging.getLogger("some.library").info("chatter")
    [line] = lines
    assert (line["message"], line["level"], line["logger"]) == ("it is late", "warning", "some.library")


def test_what_is_no_json_is_written_as_text(capfd: pytest.CaptureFixture[str]) -> None:
    with logged(capfd) as lines:
        logging.getLogger("bedplate.test").warning("odd", extra={"thing": {1, 2}, "error": ValueError("x")})
    [line] = lines
    assert (line["thing"], line["error"]) == ("{1, 2}", "x")
