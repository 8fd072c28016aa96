"""Stores of documents that cannot be used: the operator is told in one line what is wrong."""

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pymongo import MongoClient

from bedplate import compose, doctor
from bedplate.kernel.settings import OperatorError, Settings
from tests.kernel.servers import RedisServer
from tests.processes import command
from tests.world import SECRET

T = TypeVar("T")

ORDERS, PAYMENTS = "orders_database_url", "payments_database_url"
MISTAKES = [
    (ORDERS, "redis://127.0.0.1:1/0", "orders are kept in SQLite, PostgreSQL or MongoDB"),
    (PAYMENTS, "mongodb://127.0.0.1:1/shop", "payments are kept in SQLite, PostgreSQL or Redis"),
    (ORDERS, "mongodb://127.0.0.1:1", "is not a URL like mongodb://host:27017/bedplate"),
    (ORDERS, "mongodb://user:s3cret@a:b:c/shop", "is not a URL like mongodb://host:27017/bedplate"),
    (PAYMENTS, "redis://:s3cret@127.0.0.1:port/0", "is not a URL like redis://host:6379/0"),
    (PAYMENTS, "redis://:s3cret@127.0.0.1:{port}/0", "Redis does not answer there, or refuses us"),
    (ORDERS, "mongodb://user:s3cret@127.0.0.1:{port}/shop", "MongoDB does not answer there, or refuses us"),
]


def settings(folder: Path, **more: Any) -> Settings:
    return Settings(_env_file=None, secret=SECRET, data=folder / "data", **more)


def apart(work: Callable[[], T]) -> T:
    """In a thread, because it runs loops of its own."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


@pytest.mark.parametrize(("name", "url", "line"), MISTAKES)
def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path, name: str, url: str, line: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        wrong = settings(tmp_path, **{name: url.replace("{port}", str(deaf.getsockname()[1]))})
        with pytest.raises(OperatorError) as told:
            apart(lambda: compose.prepare(wrong))
        findings = apart(lambda: doctor.examine(lambda: wrong))
    assert name.upper() in str(told.value)
    assert line in str(told.value)
    assert "\n" not in str(told.value)
    assert "s3cret" not in str(told.value)
    bad = [finding for finding in findings if not finding.ok]
    assert any(name.upper() in f"{finding.finding} {finding.remedy}" for finding in bad), bad
    assert "s3cret" not in repr(bad)


def test_a_missing_driver_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    # As if it were not installed: what is found first under its name cannot be imported.
    (tmp_path / "pymongo.py").write_text("raise ModuleNotFoundError('No module named pymongo', name='pymongo')\n")
    url = {"ORDERS_DATABASE_URL": "mongodb://127.0.0.1:9/shop", "PYTHONPATH": str(tmp_path)}
    ended = command(tmp_path, "up", "--port", "0", **url)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
    assert "pip install 'bedplate[mongodb]'" in ended.stderr


def test_a_redis_that_could_lose_payments_is_refused_in_production_and_told_of_elsewhere(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", durable=False) as server:
        here = settings(tmp_path, payments_database_url=server.url)
        live = settings(tmp_path, payments_database_url=server.url, environment="production")
        apart(lambda: compose.prepare(here))
        [bad] = [finding for finding in apart(lambda: doctor.examine(lambda: here)) if not finding.ok]
        assert (bad.check, bad.remedy) == ("payments_database", "set appendonly yes")
        with pytest.raises(OperatorError, match="set appendonly yes"):
            apart(lambda: compose.prepare(live))
        with server.client() as client:
            client.config_set("appendonly", "yes")
        apart(lambda: compose.prepare(live))
        assert [finding for finding in apart(lambda: doctor.examine(lambda: here)) if not finding.ok] == []


def test_what_every_process_does_to_its_databases_makes_the_indexes(tmp_path: Path, empty_mongo: str) -> None:
    apart(lambda: compose.prepare(settings(tmp_path, orders_database_url=empty_mongo)))
    with MongoClient(empty_mongo) as client:
        indexes = client.get_default_database()["orders"].index_information()
    keys = [[field for field, _ in index["key"]] for index in indexes.values()]
    assert ["body.user_id", "body.created_at", "body.id"] in keys
    assert ["body.user_id", "body.status", "body.created_at", "body.id"] in keys
