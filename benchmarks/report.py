"""The tables, with the aims beside what was reached."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.points import POINTS

# One process on SQLite.
AIMED = "sqlite-1"
READY_SECONDS = 1.0
IDLE_MB = 100.0
STORM_MB = 64.0
STORM_RATIO = 3.0
FLOWS = 300
FLOW_P99_MS = 250.0
CHATS = 1_000
ADDED_P50_MS = 3.0


def show(results: dict[str, Any], console: Console) -> None:
    """Print everything that was measured."""
    for name, result in results["deployments"].items():
        console.print(_rates(name, result))
    if results["argon2_per_second"]:
        console.print(f"Argon2 alone, on all cores: {results['argon2_per_second']:.0f} verifications a second")
    console.print(_processes(results["deployments"]))
    for name, reason in results["skipped"].items():
        console.print(f"[yellow]skipped[/] {name}: {reason}", soft_wrap=True)
    for name, result in results["deployments"].items():
        for error, count in result["errors"].items():
            console.print(f"[red]failed[/] {name}: {error}, {count} times")


def show_flows(results: dict[str, Any], console: Console) -> None:
    """Print the table of flows."""
    table = Table("", title=f"order to confirmed, aims of sqlite-1: {FLOWS} flows a second, p99 {FLOW_P99_MS:.0f} ms")
    for column in ("flows/s", "p50 ms", "p99 ms", "POST p50 ms", "server µs", "flows", "unconfirmed", "errors"):
        table.add_column(column, justify="right")
    for name, result in results.items():
        for load, figures in result.items():
            aimed = name == AIMED
            rate, p99 = figures["per_second"], figures["p99_ms"]
            table.add_row(
                f"{name}, {load} load",
                _judged(f"{rate:,.0f}", not aimed or load != "full" or rate >= FLOWS),
                f"{figures['p50_ms']:.1f}",
                _judged(f"{p99:.1f}", not aimed or load != "half" or p99 <= FLOW_P99_MS),
                f"{figures['post_p50_ms']:.1f}",
                f"{figures['server_us']:,.0f}",
                f"{figures['flows']:,}",
                _judged(str(figures["unconfirmed"]), not figures["unconfirmed"]),
                _judged(str(figures["errors"] or 0), not figures["errors"]),
            )
    console.print(table)


def show_chat(results: dict[str, Any], console: Console) -> None:
    """Print the table of chat completions."""
    aims = f"{CHATS:,} a second, {ADDED_P50_MS:.0f} ms added at the median"
    table = Table("", title=f"POST /api/chat in front of an instant model, aims of {AIMED}: {aims}")
    for column in (
        "chats/s",
        "of the bare route",
        "p50 ms",
        "p99 ms",
        "added p50 ms",
        "added p99 ms",
        "server µs",
        "errors",
    ):
        table.add_column(column, justify="right")
    for name, result in results.items():
        best = max(load["rate"] for load in result["loads"].values())
        for connections, load in result["loads"].items():
            aimed = name == AIMED
            few = connections <= 4
            table.add_row(
                f"{name}, {connections} connections",
                _judged(f"{load['rate']:,.0f}", not aimed or load["rate"] < best or best >= CHATS),
                f"{load['rate'] / result['bare_rate']:.3f}",
                f"{load['p50_ms']:.2f}",
                f"{load['p99_ms']:.2f}",
                _judged(f"{load['added_p50_ms']:.2f}", not aimed or not few or load["added_p50_ms"] <= ADDED_P50_MS),
                f"{load['added_p99_ms']:.2f}",
                f"{load['server_us']:,.0f}",
                _judged(str(load["errors"] or 0), not load["errors"]),
            )
        door, fan = result["door"], result["fan"]
        table.add_row(
            f"{name}, /v1/chat/completions, 128",
            f"{door['rate']:,.0f}",
            f"{door['rate'] / result['bare_rate']:.3f}",
            f"{door['p50_ms']:.2f}",
            f"{door['p99_ms']:.2f}",
            f"{door['added_p50_ms']:.2f}",
            f"{door['added_p99_ms']:.2f}",
            f"{door['server_us']:,.0f}",
            _judged(str(door["errors"] or 0), not door["errors"]),
        )
        console.print(
            f"{name}: {fan['sockets']} sockets ask at once: {fan['answers_per_second']:,.0f} answers and "
            f"{fan['deltas_per_second']:,.0f} deltas a second, the last after {fan['slowest_round_seconds']:.2f} s, "
            f"{fan['server_us_per_answer']:,.0f} µs of the server for each answer; {result['memory_mb']:.0f} MB"
        )
    console.print(table)


def _rates(name: str, result: dict[str, Any]) -> Table:
    table = Table("", title=f"{name}: requests a second, 32 connections", title_justify="left")
    for column in ("rate", "of the bare route", "aim", "server µs", "p50 ms", "p99 ms", "errors"):
        table.add_column(column, justify="right")
    bare = {"title": "bare FastAPI route", **result["bare"], "ratio": 1.0}
    measured = [
        {"title": point.title, **result["points"][point.name]} for point in POINTS if point.name in result["points"]
    ]
    aims = {point.title: point.aim for point in POINTS if name == AIMED}
    for row in [bare, *measured]:
        aim = aims.get(row["title"])
        table.add_row(
            row["title"],
            f"{row['rate']:,.0f}",
            _judged(f"{row['ratio']:.3f}", aim is None or row["ratio"] >= aim),
            f"{aim:.2f}" if aim else "",
            f"{row['server_us']:,.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            _judged(str(row["errors"]), not row["errors"]),
        )
    return table


def _processes(deployments: dict[str, Any]) -> Table:
    table = Table("", title="all processes of a server", title_justify="left")
    table.add_column("aim, sqlite-1", justify="right")
    for name in deployments:
        table.add_column(name, justify="right")
    for title, aim, path, form in _measures():
        cells = []
        for name, result in deployments.items():
            value = result.get(path[0])
            for key in path[1:]:
                value = value and value[key]
            good = value is None or name != AIMED or aim is None or value <= aim
            cells.append("" if value is None else _judged(form.format(value), good))
        table.add_row(title, form.format(aim) if aim else "", *cells)
    return table


def _measures() -> Iterator[tuple[str, float | None, tuple[str, ...], str]]:
    yield "ready, seconds", READY_SECONDS, ("ready_seconds",), "{:.2f}"
    yield "memory idle, MB", IDLE_MB, ("idle_mb",), "{:.0f}"
    yield "memory after load, MB", None, ("loaded_mb",), "{:.0f}"
    yield "256 logins at once: added memory, MB", STORM_MB, ("storm", "added_mb"), "{:.0f}"
    yield "   seconds until all are answered", None, ("storm", "seconds"), "{:.1f}"
    yield "   p99 of reads without them, ms", None, ("storm", "quiet_p99_ms"), "{:.2f}"
    yield "   p99 of reads meanwhile, ms", None, ("storm", "p99_ms"), "{:.2f}"
    yield "   ratio", STORM_RATIO, ("storm", "ratio"), "{:.1f}"


def _judged(text: str, good: bool) -> str:
    return text if good else f"[red]{text}[/]"
