"""`python -m benchmarks` measures everything in one run; `python -m benchmarks profile NAME` shows where time goes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bedplate.kernel.settings import environment_names
from benchmarks import chat as chats
from benchmarks import deployments, report, servers, suite
from benchmarks import flows as shop
from benchmarks.load import Load, measure
from benchmarks.points import Client

app = typer.Typer(add_completion=False, invoke_without_command=True)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

Users = Annotated[int, typer.Option(min=60, max=1_000_000, help="Accounts in the database.")]
OnDeployment = Annotated[str, typer.Option(help=", ".join(deployments.NAMES))]


@app.callback()
def bench(
    context: typer.Context,
    seconds: Annotated[float, typer.Option(min=0.1, max=60, help="Measured for each point.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="The median of them counts.")] = 2,
    users: Users = 5_000,
    only: Annotated[list[str] | None, typer.Option(help=f"A point: {', '.join(suite.CHOICES)}. Repeatable.")] = None,
    deployment: Annotated[list[str] | None, typer.Option(help=f"{', '.join(deployments.NAMES)}. Repeatable.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Requests a second, latency, memory and seconds to ready, beside a bare FastAPI route in the same run."""
    if context.invoked_subcommand:
        return
    plan = suite.Plan(
        seconds,
        rounds,
        users,
        _known(deployment, deployments.NAMES, "--deployment"),
        _known(only, suite.CHOICES, "--only"),
    )
    bar = Progress(TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="bedplate-bench-") as folder, bar:
        task = bar.add_task("accounts", total=plan.steps)
        results = suite.run(plan, Path(folder), lambda text: bar.update(task, advance=1, description=text))
    report.show(results, console)
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")
    if results["failed"]:
        raise typer.Exit(1)


@app.command()
def profile(
    name: Annotated[str, typer.Argument(help=", ".join(suite.CHOICES[:-1]))],
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("profile.svg"),
    form: Annotated[str, typer.Option("--format", help="flamegraph, speedscope or raw")] = "flamegraph",
    deployment: OnDeployment = "sqlite-1",
    seconds: Annotated[int, typer.Option(min=1, max=60)] = 8,
    users: Users = 5_000,
) -> None:
    """Run one point under py-spy. Where the system forbids tracing other processes it needs root."""
    _known([name], suite.CHOICES[:-1], "NAME")
    _known([deployment], deployments.NAMES, "--deployment")
    spy = [str(Path(sys.executable).with_name("py-spy")), "record", "--rate", "250", "--subprocesses"]
    with (
        tempfile.TemporaryDirectory(prefix="bedplate-bench-") as folder,
        deployments.prepared(deployment, Path(folder) / deployment, users) as prepared,
        servers.bedplate(prepared.folder, prepared.environment, prepared.workers) as server,
    ):
        traffic = Client(server, prepared).traffic(name)
        options = ["--pid", str(server.process.pid), "--duration", str(seconds), "--format", form]
        with subprocess.Popen([*spy, *options, "--output", str(output.resolve())]) as recording:
            time.sleep(0.5)
            measured = measure(Load(server.port, traffic, suite.CONNECTIONS, 0.0, float(seconds)))
            recording.wait(timeout=60)
    console.print(f"{measured.rate:,.0f} requests a second while profiled; see {output}", markup=False)
    raise typer.Exit(recording.returncode or bool(measured.errors))


@app.command()
def flows(
    seconds: Annotated[float, typer.Option(min=0.5, max=120, help="Measured for each load.")] = 8.0,
    deployment: Annotated[list[str] | None, typer.Option(help=f"{', '.join(shop.NAMES)}. Repeatable.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Commerce: orders paid and confirmed a second, and how long from the payment to that."""
    names = _known(deployment, shop.NAMES, "--deployment")
    bar = Progress(TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bedplate-bench-") as folder, bar:
        task = bar.add_task("flows", total=3 * len(names))
        for name in names:
            try:
                results[name] = shop.measure(
                    name, Path(folder) / name, seconds, lambda text: bar.update(task, advance=1, description=text)
                )
            except deployments.Absent as absent:
                console.print(f"[yellow]skipped[/] {name}: {absent}", soft_wrap=True)
    report.show_flows(results, console)
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")
    if any(load["errors"] or load["unconfirmed"] for result in results.values() for load in result.values()):
        raise typer.Exit(1)


@app.command()
def chat(
    seconds: Annotated[float, typer.Option(min=0.5, max=60, help="Measured for each load.")] = 4.0,
    deployment: Annotated[list[str] | None, typer.Option(help=f"{', '.join(chats.NAMES)}. Repeatable.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Dev-PyNode: chat completions a second in front of an instant model, and what is added to it."""
    names = _known(deployment, chats.NAMES, "--deployment")
    bar = Progress(TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bedplate-bench-") as folder, bar:
        task = bar.add_task("chat", total=len(names) * (3 + len(chats.CONNECTIONS)))
        for name in names:
            try:
                results[name] = chats.measure(
                    name, Path(folder) / name, seconds, lambda text: bar.update(task, advance=1, description=text)
                )
            except deployments.Absent as absent:
                console.print(f"[yellow]skipped[/] {name}: {absent}", soft_wrap=True)
    report.show_chat(results, console)
    if json_file:
        json_file.write_text(json.dumps(results, indent=2) + "\n")
    if any(load["errors"] for result in results.values() for load in [*result["loads"].values(), result["door"]]):
        raise typer.Exit(1)


def _known(chosen: list[str] | None, known: list[str] | tuple[str, ...], option: str) -> list[str]:
    for name in chosen or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
    return [name for name in known if not chosen or name in chosen]


def _forget_settings() -> None:
    # What is measured is the default product, whatever this shell is set up for.
    for names in environment_names().values():
        for name in names.split(", "):
            os.environ.pop(name, None)


if __name__ == "__main__":
    _forget_settings()
    app()
