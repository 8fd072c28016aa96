"""The command line."""

import asyncio
import contextlib
import inspect
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from fastapi.routing import iter_route_contexts
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from bedplate import __version__, compose, migrations
from bedplate.announcement import announce
from bedplate.doctor import examine
from bedplate.kernel import outbox, server, tails
from bedplate.kernel.clock import Clock, iso
from bedplate.kernel.db import Database
from bedplate.kernel.errors import Problem
from bedplate.kernel.settings import OperatorError, Settings, load
from bedplate.kernel.telemetry import configure_logging
from bedplate.modules.identity.public import EmailTaken, Registration, ServiceKeys, Users
from bedplate.modules.mail.public import Mail, Mailbox, Push
from bedplate.modules.ops.public import Operations

T = TypeVar("T")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="A self-hosted SaaS backend: documented HTTP APIs over one core.",
)
admin = typer.Typer(no_args_is_help=True, help="Administrators.")
events = typer.Typer(no_args_is_help=True, help="Events between modules.")
dead = typer.Typer(no_args_is_help=True, help="Events that could not be delivered in four attempts.")
keys = typer.Typer(no_args_is_help=True, help="Service keys (X-API-Key) of other programs.")
mail = typer.Typer(no_args_is_help=True, help="Mail that was sent, or kept where no SMTP_URL is set.")
app.add_typer(admin, name="admin")
app.add_typer(events, name="events")
events.add_typer(dead, name="dead")
app.add_typer(keys, name="keys")
app.add_typer(mail, name="mail")

# Wide enough that nothing is cut where the output goes to a file or a pipe.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

Data = Annotated[
    Path | None, typer.Option("--data", help="Folder for the database and the secret. Also BEDPLATE_DATA.")
]
Host = Annotated[str, typer.Option(envvar="API_HOST", help="Address to listen on.")]
Listed = Annotated[int, typer.Option("--limit", min=1, max=500, help="How many at most.")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Server processes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def main() -> None:
    """Run; mistakes of the operator end with one line and code 2."""
    try:
        app()
    except OperatorError as mistake:
        sys.stderr.write(f"bedplate: {mistake}\n")
        sys.exit(2)
    except Problem as problem:
        sys.stderr.write(f"bedplate: {problem}\n")
        sys.exit(1)


@app.command()
def up(
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, envvar="API_PORT")] = 8000,
    data: Data = None,
    workers: Workers = 1,
) -> None:
    """Serve every system on one port, each under its name."""
    _serve(None, host, port, data, workers)


@app.command()
def serve(
    name: Annotated[str, typer.Argument(help=", ".join(compose.NAMES))],
    host: Host = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, envvar="API_PORT", help="Default: the documented port.")
    ] = None,
    data: Data = None,
    workers: Workers = 1,
) -> None:
    """Serve one system at its documented ports and paths, or the modules for other processes ("internal")."""
    _serve(name, host, port, data, workers)


@app.command()
def migrate(data: Data = None) -> None:
    """Bring the database to the schema of this version. Servers do it when they start."""
    settings = _settings(data)
    shape = compose.shape_of(None, settings)
    if not shape.here:
        raise OperatorError("the database is with the modules, in another process; migrate there")
    changed = compose.upgrade(settings, shape)
    out.print(f"database migrated to {migrations.HEAD}" if changed else f"database is at {migrations.HEAD}")


@app.command()
def routes(data: Data = None) -> None:
    """List every operation: METHOD PATH SYSTEM FILE:LINE."""
    for system in compose.blueprint(_settings(data), Clock()):
        for route in iter_route_contexts(system.app.routes):
            if route.endpoint is not None and route.endpoint.__module__.startswith("bedplate."):
                code = inspect.unwrap(route.endpoint).__code__
                where = f"{os.path.relpath(code.co_filename)}:{code.co_firstlineno}"
                for method in sorted((route.methods or {"WEBSOCKET"}) - {"HEAD"}):
                    sys.stdout.write(f"{method} {route.path} {system.name} {where}\n")


@app.command()
def doctor(
    name: Annotated[str | None, typer.Argument(help="What the process serves, as for `serve`. Default: all.")] = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Check settings, database, cache, broker, storage and mail, and say how to mend what is wrong."""
    findings = examine(lambda: _settings(data), name)
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        table = _table("check", "", "finding", "what to do")
        for finding in findings:
            mark = "[red]wrong[/]" if not finding.ok else "[yellow]note[/]" if finding.remedy else "[green]ok[/]"
            table.add_row(finding.check, mark, finding.finding, finding.remedy)
        out.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def audit(data: Data = None, limit: Listed = 50, as_json: AsJson = False) -> None:
    """Show what administrators have done, newest first."""
    entries = _run(data, lambda runtime: runtime.get(Operations).audit_log(limit))
    if as_json:
        _print_json([{**asdict(entry), "at": iso(entry.at)} for entry in entries])
        return
    table = _table("when", "who", "what", "to whom")
    for entry in entries:
        table.add_row(iso(entry.at), entry.actor_id or "command line", entry.action, entry.subject)
    out.print(table)


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"{__version__}\n")


@admin.command("create")
def create_admin(
    email: str,
    username: Annotated[str | None, typer.Option(help="Username to sign in with.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    data: Data = None,
) -> None:
    """Create an administrator, or make an existing account one."""
    if not password_stdin and not sys.stdin.isatty():
        raise OperatorError("no terminal to ask for the password; use --password-stdin")
    if password_stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = typer.prompt("Password", hide_input=True, confirmation_prompt="Password again")
    registration = Registration(email, password, username=username)

    async def appoint(runtime: compose.Runtime) -> str:
        users = runtime.get(Users)
        try:
            user = await users.create_admin(registration)
        except EmailTaken:
            user = await users.promote(registration)
            return (
                f"{user.email} had an account: it is an administrator now, with this password; its sessions were ended"
            )
        return f"administrator {user.email} created"

    out.print(_run(data, appoint, create=True), markup=False)


@dead.command("list")
def list_dead(data: Data = None, limit: Listed = 50, as_json: AsJson = False) -> None:
    """List dead letters, the last to die first."""

    async def read(runtime: compose.Runtime) -> list[Any]:
        found = [letter for each in _databases(runtime) for letter in await outbox.dead_letters(each, limit)]
        return sorted(found, key=lambda letter: letter.died_at, reverse=True)[:limit]

    letters = _run(data, read)
    if as_json:
        _print_json([dict(letter._mapping) for letter in letters])
        return
    table = _table("id", "event", "of", "for", "died", "because")
    for letter in letters:
        table.add_row(letter.id, letter.type, letter.key, letter.consumer, iso(letter.died_at), letter.error)
    out.print(table)


@dead.command("replay")
def replay_dead(letter_id: str, data: Data = None) -> None:
    """Put a dead letter back into the queue. A running server delivers it."""

    async def put_back(runtime: compose.Runtime) -> bool:
        found = [await outbox.replay(each, runtime.clock, letter_id) for each in _databases(runtime)]
        return any(found)

    if not _run(data, put_back):
        raise OperatorError(f"there is no dead letter {letter_id}")
    out.print("queued")


@events.command("tail")
def tail_events(data: Data = None, as_json: AsJson = False) -> None:
    """Follow events live, until Ctrl-C: of the broker where there is one, else of this process's databases."""

    async def follow(runtime: compose.Runtime) -> None:
        source = (
            runtime.broker.tail(sorted(set(compose.TOPICS.values())), _listening)
            if runtime.broker is not None
            else tails.follow(_databases(runtime), runtime.clock, _listening)
        )
        async for wire in source:
            sys.stdout.write(json.dumps(wire) + "\n" if as_json else _event_line(wire))
            sys.stdout.flush()

    with contextlib.suppress(KeyboardInterrupt):
        _run(data, follow)


@keys.command("create")
def create_key(name: str, data: Data = None, as_json: AsJson = False) -> None:
    """Create a service key and print it. It is not shown again."""
    new = _run(data, lambda runtime: runtime.get(ServiceKeys).create_key(name), create=True)
    if as_json:
        _print_json(asdict(new))
    else:
        sys.stdout.write(f"{new.key}\n")


@keys.command("list")
def list_keys(data: Data = None, as_json: AsJson = False) -> None:
    """List service keys, newest first."""
    found = _run(data, lambda runtime: runtime.get(ServiceKeys).list_keys())
    if as_json:
        _print_json([asdict(key) for key in found])
        return
    table = _table("id", "name", "created", "revoked")
    for key in found:
        table.add_row(key.id, key.name, iso(key.created_at), iso(key.revoked_at) if key.revoked_at else "")
    out.print(table)


@keys.command("revoke")
def revoke_key(key_id: str, data: Data = None) -> None:
    """Refuse a service key from now on."""
    _run(data, lambda runtime: runtime.get(ServiceKeys).revoke_key(key_id))
    out.print("revoked")


@mail.command("list")
def list_mail(data: Data = None, limit: Listed = 50, as_json: AsJson = False) -> None:
    """List mail, newest first."""
    found = _run(data, lambda runtime: runtime.get(Mailbox).list_mail(limit))
    _say_where_mail_is(found)
    if as_json:
        _print_json([_mail_json(each) for each in found])
        return
    table = _table("id", "to", "subject", "created")
    for each in found:
        table.add_row(each.id, each.to, each.subject, iso(each.created_at))
    out.print(table)


@mail.command("show")
def show_mail(mail_id: str, data: Data = None, as_json: AsJson = False) -> None:
    """Show one mail."""
    found = _run(data, lambda runtime: runtime.get(Mailbox).get_mail(mail_id))
    if as_json:
        _print_json(_mail_json(found))
        return
    sys.stdout.write(f"To: {found.to}\nSubject: {found.subject}\nDate: {iso(found.created_at)}\n\n{found.text}\n")


@mail.command("push")
def list_push(user_id: str, data: Data = None, limit: Listed = 50, as_json: AsJson = False) -> None:
    """List the push messages that are kept of a user (the last 50), newest first."""

    async def read(runtime: compose.Runtime) -> list[Push]:
        found = await runtime.get(Mailbox).list_push(user_id, limit)
        if not found:
            await runtime.get(Users).get_user(user_id)  # or whoever has mistyped the id waits for messages
        return found

    found = _run(data, read)
    _say_where_mail_is(found)
    if as_json:
        _print_json([asdict(each) for each in found])
        return
    table = _table("id", "title", "message", "created")
    for each in found:
        table.add_row(each.id, each.title, escape(each.body), iso(each.created_at))
    out.print(table)


def _say_where_mail_is(found: Sequence[object]) -> None:
    """Where services have databases of their own, nothing here may only mean that this is another's."""
    if not found and load().broker_url is not None:
        sys.stderr.write(
            "nothing here; with BROKER_URL mail is kept by the notification worker: run this with its settings\n"
        )


def _table(*names: str) -> Table:
    """Nothing is cut in a narrow terminal, where addresses and ids are there to be copied: ids stay whole, the rest
    is folded."""
    return Table(*(Column(name, no_wrap=name == "id", overflow="fold") for name in names))


def _serve(name: str | None, host: str, port: int | None, data: Path | None, workers: int) -> None:
    settings = _settings(data)
    planned = compose.served_by(name, settings, port)
    if workers > 1:
        compose.may_have_several_workers(settings, name)
    created = compose.prepare(settings, name=name)
    listeners = [server.listen(host, each.port, compose.another_port(name, each.name, each.option)) for each in planned]
    served = [replace(each, port=listener.getsockname()[1]) for each, listener in zip(planned, listeners, strict=True)]
    announce(out, name, served, f"http://{f'[{host}]' if ':' in host else host}", settings, created=created)
    compose.to_environment(name, served)
    os.environ["BEDPLATE_DATA"] = str(settings.data)
    server.run(
        "bedplate.compose:from_environment",
        listeners,
        workers=workers,
        drain_seconds=settings.drain_seconds,
        proxies=settings.trusted_proxies,
    )


def _settings(data: Path | None) -> Settings:
    if data is not None:
        os.environ["BEDPLATE_DATA"] = str(data)
    return load()


def _run(data: Path | None, work: Callable[[compose.Runtime], Awaitable[T]], *, create: bool = False) -> T:
    settings = _settings(data)
    configure_logging("WARNING")
    here = compose.shape_of(None, settings).here
    new = bool(here) and migrations.is_new(settings.database)
    if create and new and settings.broker_url is not None and settings.database_url is None and "identity" in here:
        raise OperatorError(
            f"with BROKER_URL accounts and keys are in the database of the user service, and there is none in "
            f"{settings.data}; run this with the DATABASE_URL or BEDPLATE_DATA of that process"
        )
    if not create and new:
        raise OperatorError(
            f"there is no installation in {settings.data}; start one there with `bedplate up`, or name the folder "
            "with --data or BEDPLATE_DATA"
        )
    compose.prepare(settings)

    async def run() -> T:
        async with compose.running(settings, Clock(), deliver=False) as runtime:
            return await work(runtime)

    return asyncio.run(run())


def _listening() -> None:
    sys.stderr.write("following; Ctrl-C ends it\n")


def _databases(runtime: compose.Runtime) -> list[Database]:
    if not runtime.databases:
        raise OperatorError("the database is with the modules, in another process; run this there")
    return list(runtime.databases.values())


def _event_line(wire: dict[str, Any]) -> str:
    shown = {name: value for name, value in wire.items() if name not in ("event_id", "occurred_at", "event_type")}
    return f"{wire['occurred_at']}  {wire['event_type']}  {json.dumps(shown)}\n"


def _mail_json(found: Mail) -> dict[str, str]:
    return {**asdict(found), "created_at": iso(found.created_at)}


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=iso) + "\n")
