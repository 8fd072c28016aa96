"""The other service of the documented example: processes the order of one user. For it, api-service is this machine."""

import asyncio
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

resolve = socket.getaddrinfo


def at_home(host: Any, *more: Any, **options: Any) -> Any:
    return resolve("127.0.0.1" if host in ("api-service", b"api-service") else host, *more, **options)


socket.getaddrinfo = at_home
example = runpy.run_path(str(Path(__file__).with_name("service_client.txt")))
asyncio.run(example["process_order"]({"user_id": sys.argv[1]}))
