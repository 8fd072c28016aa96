"""What a server says before it serves: where everything is, and what to do first."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bedplate import compose
from bedplate.kernel.settings import Settings


def announce(
    out: Console, name: str | None, served: Sequence[compose.Served], host: str, settings: Settings, *, created: bool
) -> None:
    """Print it. `name`: as for `serve`; `host`: how the addresses begin; `created`: whether a database was made."""
    places = []
    for each in served:
        address = f"{host}:{each.port}"
        if each.option == "WS_PORT":
            places.append((f"{each.name}, WebSocket", f"{address.replace('http', 'ws', 1)}/ws", ""))
            continue
        if each.name == compose.INTERNAL:
            places.append(("modules, for other processes", address, ""))
        for place in compose.PLACES.values():
            if each.name in ("", place.name):
                base = address if each.name else f"{address}/{place.mount}"
                places.append((place.name, base, place.docs))
    _print_places(out, places)
    if not served[0].name:
        out.print(f"start page   {host}:{served[0].port}/", markup=False, soft_wrap=True)
    here = compose.shape_of(name, settings).here
    if here:
        where = settings.data if settings.database_url is None else "in the database of DATABASE_URL"
        out.print(f"data         {where}", markup=False, soft_wrap=True)
    if created and "identity" in here:
        command = "bedplate" if shutil.which("bedplate") else os.path.relpath(sys.argv[0])
        option = "" if settings.data == Path("bedplate-data") else f" --data {settings.data}"
        # With a broker each process has a database of its own, which its settings name.
        whose = "" if settings.broker_url is None else ", with the settings of this process"
        # Not wrapped, however deep the folders are: it is there to be copied.
        out.print(f"administrator{whose}: {command} admin create you@example.com{option}", markup=False, soft_wrap=True)
    sys.stdout.flush()


def _print_places(out: Console, places: Sequence[tuple[str, str, str]]) -> None:
    """Names, addresses and paths of documentation: as a table where it fits, else as lines. An address that is folded
    can be neither clicked nor copied."""
    rows = [(name, address, f"{address}{docs}" if docs else "") for name, address, docs in places]
    table = Table("system", "address", "documentation")
    for row in rows:
        table.add_row(*row)
    if sum(max(map(len, column)) + 3 for column in zip(*rows, strict=True)) < out.width:
        out.print(table)
        return
    width = max(len(name) for name, _, _ in places)
    for name, address, docs in places:
        documented = f"  documentation: {docs}" if docs else ""
        out.print(f"{name:{width}}  {address}{documented}", markup=False, soft_wrap=True)
