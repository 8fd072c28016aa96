"""Stores of documents: a server that speaks MongoDB's protocol, and a look into stores from behind their backs."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import orjson
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from bedplate.kernel.db import amount_of, moment
from bedplate.kernel.mongo import MongoDocuments
from bedplate.kernel.redis_documents import RedisDocuments
from bedplate.models import IdempotencyRow, PaymentRow, RefundRow, SlotRow
from tests.kernel.servers import free_port

READY_SECONDS = 20.0
COMMAND = Path(sys.executable).with_name("nx-27017")


class MongoServer:
    """MongoDB's wire protocol on SQLite, with its data in `folder`, always at the same port. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"mongodb://127.0.0.1:{self.port}/{database}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.kill()

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        files = {name: str(self.folder / name) for name in ("log-file", "pid-file", "data-dir")}
        Path(files["data-dir"]).mkdir(exist_ok=True)
        line = [part for name, value in files.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [COMMAND, "--port", str(self.port), *line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + READY_SECONDS
        with MongoClient(self.url("admin"), serverSelectionTimeoutMS=200) as client:
            while True:
                try:
                    client.admin.command("ping")
                    return
                except PyMongoError as error:
                    assert self._process.poll() is None, f"the server has ended with {self._process.returncode}"
                    assert time.monotonic() < deadline, error

    def kill(self) -> None:
        """As `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


async def rows_in_redis(documents: RedisDocuments, table: Any) -> list[Any] | None:
    """What the rows of this table would be; None if it has nothing to do with documents."""
    if table is IdempotencyRow:
        raw = [orjson.loads(each) async for each in _values(documents, "key")]
        return [SimpleNamespace(answer=answer, created_at=moment(until)) for _, until, answer in raw]
    if table not in (PaymentRow, RefundRow, SlotRow):
        return None
    bodies = sorted([orjson.loads(each) async for each in _values(documents, "document")], key=lambda each: str(each))
    if table is SlotRow:
        return [SimpleNamespace(**body) for body in bodies]
    if table is RefundRow:
        return [_row(refund) for body in bodies for refund in body["refunds"].values()]
    return [_row(body["payment"]) for body in bodies if body["payment"] is not None]


async def everything_in_redis(documents: RedisDocuments) -> list[str]:
    """Every value there is, as text."""
    read = {"string": "GET", "list": "LRANGE {} 0 -1", "zset": "ZRANGE {} 0 -1", "hash": "HGETALL"}
    found = []
    async for key in documents._redis.scan_iter(count=1000):
        command = read[(await documents._redis.type(key)).decode()]
        words = command.format(key.decode()).split() if "{}" in command else [command, key]
        found.append(repr((key, await documents._redis.execute_command(*words))))
    return found


async def _values(documents: RedisDocuments, kind: str) -> Any:
    async for key in documents._redis.scan_iter(match=documents._key(kind, "*"), count=1000):
        yield await documents._redis.get(key)


def _row(kept: dict[str, Any]) -> Any:
    """With times and money as a SQL row has them."""
    money = {name: amount_of(kept[name]) for name in ("amount", "refunded_amount") if name in kept}
    times = {name: moment(value) for name, value in kept.items() if name.endswith("_at")}
    return SimpleNamespace(**{**kept, **money, **times})


async def orders_in(documents: MongoDocuments) -> int:
    """How many orders there are."""
    return await documents.count({"user_id": {"$exists": True}})


async def empty(documents: MongoDocuments) -> None:
    """Forget all of them."""
    await documents._all.delete_many({})
    await documents._keys.delete_many({})
