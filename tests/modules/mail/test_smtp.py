"""Mail by a real SMTP server: what leaves, what stays, and what happens while the server is away."""

import asyncio
import email.policy
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from bedplate.kernel.errors import Unavailable
from bedplate.kernel.failpoints import arm
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import REVIVED_WITHIN, dead_letters, replay, waiting
from bedplate.kernel.relay import AWAY_FOR, RETRIES
from bedplate.kernel.settings import OperatorError
from bedplate.modules.identity.public import Confirmations, Registration, User, Users
from bedplate.modules.mail.public import Mailbox
from bedplate.modules.mail.smtp import Smtp
from bedplate.modules.mail.transport import Message
from tests import factories
from tests import world as worlds
from tests.factories import PASSWORD
from tests.world import World

USER, SMTP_PASSWORD = "bedplate@example.com", "p@ss/word:1"


@dataclass
class PostOffice:
    """An SMTP server that keeps what it takes. `refusing` makes it answer so; `losing` takes, then says no."""

    port: int = 0
    taken: list[EmailMessage] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    refusing: str = ""
    losing: bool = False
    _server: asyncio.Server | None = None

    async def open(self, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        self._server = await loop.create_server(
            lambda: SMTP(self, loop=loop, hostname="post.example", **options), "127.0.0.1", self.port
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.refusing:
            return self.refusing
        assert isinstance(envelope.content, bytes)
        message = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.taken.append(message)
        self.envelopes.append(envelope)
        return "451 Taken, but the answer is lost" if self.losing else "250 OK"

    def authenticate(self, server: SMTP, session: Session, envelope: Envelope, kind: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        right = (data.login.decode(), data.password.decode()) == (USER, SMTP_PASSWORD)
        if right:
            self.logins.append(data.login.decode())
        return AuthResult(success=right, handled=False)


@pytest.fixture
async def office() -> AsyncIterator[PostOffice]:
    made = PostOffice()
    await made.open()
    yield made
    await made.close()


@pytest.fixture(params=["sqlite", "postgres+redis"])
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, sqlite_template: Path, office: PostOffice
) -> AsyncIterator[World]:
    """The product, with its mail going to the post office."""
    settings: dict[str, Any] = {
        "smtp_url": f"smtp://127.0.0.1:{office.port}",
        "mail_from": "Bedplate <hello@bedplate.example>",
        "rate_limit_enabled": False,
    }
    if request.param == "sqlite":
        opening = worlds.embedded(tmp_path, sqlite_template, **settings)
    else:
        postgres, redis = (request.getfixturevalue(name) for name in ("empty_postgres", "empty_redis"))
        opening = worlds.on_servers(tmp_path, postgres, redis, **settings)
    async with opening as opened:
        yield opened


async def register(world: World, address: str) -> None:
    await world.front.get(Users).register(Registration(address, PASSWORD, name="Zoë"))


@asynccontextmanager
async def offices(**options: Any) -> AsyncIterator[PostOffice]:
    made = PostOffice()
    options.setdefault("authenticator", made.authenticate)
    await made.open(**options)
    try:
        yield made
    finally:
        await made.close()


async def test_a_letter_arrives_whole(world: World, office: PostOffice) -> None:
    address = factories.email()
    await register(world, address)
    await world.deliver()
    [letter], [envelope] = office.taken, office.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == ("hello@bedplate.example", [address])
    assert (letter["From"], letter["To"]) == ("Bedplate <hello@bedplate.example>", address)
    assert letter["Subject"] == "Verify your email address"
    assert letter["Message-ID"].endswith("@bedplate.example>")
    assert letter["Date"], "receivers distrust mail without a date"
    text, html = letter.get_body(("plain",)), letter.get_body(("html",))
    assert text is not None
    assert html is not None
    assert text.get_content().startswith("Hello Zoë,")
    assert "token=" in text.get_content()
    assert "token=" in html.get_content()


async def test_the_database_keeps_that_it_was_sent_but_not_the_text(world: World, office: PostOffice) -> None:
    address = factories.email()
    await register(world, address)
    [mail] = await world.mails(address)
    assert (mail.to, mail.subject) == (address, "Verify your email address")
    assert (mail.text, mail.html) == ("", "")


async def test_while_the_server_is_away_nothing_is_lost_and_nothing_is_sent_twice(
    world: World, office: PostOffice
) -> None:
    await office.close()
    addresses = [factories.email() for _ in range(3)]
    for address in addresses:
        await register(world, address)
    await world.deliver()
    database = world.runtime.database
    assert database is not None
    assert await waiting(database) == 3
    assert await world.runtime.get(Mailbox).list_mail() == [], "what was not sent is not listed as sent"
    await office.open()
    world.clock.advance(2)
    await world.deliver()
    assert sorted(letter["To"] for letter in office.taken) == sorted(addresses)
    world.clock.advance(120)
    await world.deliver()
    assert len(office.taken) == 3
    assert await waiting(database) == 0


async def test_a_letter_that_no_server_takes_waits_for_the_operator(world: World, office: PostOffice) -> None:
    office.refusing = "554 Go away"
    address = factories.email()
    await register(world, address)
    await world.deliver()
    world.clock.advance(AWAY_FOR.total_seconds())
    for _ in range(len(RETRIES) + 1):
        await world.deliver()
        world.clock.advance(60)
    database = world.runtime.database
    assert database is not None
    [letter] = await dead_letters(database)
    office.refusing = ""
    assert await replay(database, world.clock, letter.id)
    await world.deliver()
    assert [letter["To"] for letter in office.taken] == [address]


async def test_a_letter_that_was_given_up_is_sent_by_itself_and_once(world: World, office: PostOffice) -> None:
    office.refusing = "554 Go away"
    address = factories.email()
    await register(world, address)
    world.clock.advance(AWAY_FOR.total_seconds())
    for _ in range(len(RETRIES) + 1):
        await world.deliver()
        world.clock.advance(60)
    database = world.runtime.database
    assert database is not None
    assert len(await dead_letters(database)) == 1
    office.refusing = ""
    for _ in range(3):
        world.clock.advance(REVIVED_WITHIN.total_seconds())
        for mend in world.runtime.mends:
            await mend()
        await world.deliver()
    assert [letter["To"] for letter in office.taken] == [address]
    assert (await dead_letters(database), await waiting(database)) == ([], 0)


async def test_a_letter_sent_again_has_the_same_message_id_and_a_link_that_works(
    world: World, office: PostOffice
) -> None:
    office.losing = True
    address = factories.email()
    await register(world, address)
    await world.deliver()
    office.losing = False
    world.clock.advance(2)
    await world.deliver()
    first, second = office.taken
    assert first["Message-ID"] == second["Message-ID"]
    confirmations = world.front.get(Confirmations)
    body = second.get_body(("plain",))
    assert body is not None
    token = body.get_content().split("token=")[1].split("&")[0]
    assert (await confirmations.verify_email(token)).email == address


async def test_letters_have_message_ids_of_their_own(world: World, office: PostOffice) -> None:
    for _ in range(2):
        await register(world, factories.email())
    await world.deliver()
    assert len({letter["Message-ID"] for letter in office.taken}) == 2


async def verify(world: World, office: PostOffice) -> User:
    """A new account whose address is verified by the letter that it was sent."""
    address = factories.email()
    await register(world, address)
    await world.deliver()
    body = office.taken[-1].get_body(("plain",))
    assert body is not None
    token = body.get_content().split("token=")[1].split("&")[0]
    return await world.front.get(Confirmations).verify_email(token)


async def test_a_notification_leaves_as_a_letter_and_only_its_subject_is_kept(world: World, office: PostOffice) -> None:
    user = await verify(world, office)
    mails = await world.mails(user.email)
    assert [mail.subject for mail in mails] == ["Account Verified Successfully", "Verify your email address"]
    assert {mail.text + mail.html for mail in mails} == {""}
    letter = office.taken[-1]
    assert (letter["To"], letter["Subject"]) == (user.email, "Account Verified Successfully")
    text = letter.get_body(("plain",))
    assert text is not None
    assert "your e-mail address is verified" in text.get_content()
    for _ in range(2):
        world.clock.advance(60)
        await world.deliver()
    assert len(office.taken) == 2


async def test_a_push_message_waits_for_the_mail_that_tells_the_same(world: World, office: PostOffice) -> None:
    user = await verify(world, office)
    await office.close()
    await world.deliver()
    mailbox = world.front.get(Mailbox)
    assert [push.title for push in await mailbox.list_push(user.id)] == ["Welcome"]
    await office.open()
    world.clock.advance(2)
    await world.deliver()
    assert [push.title for push in await mailbox.list_push(user.id)] == ["Account Verified", "Welcome"]
    assert [letter["Subject"] for letter in office.taken].count("Account Verified Successfully") == 1


async def test_a_crash_after_the_server_took_it_sends_the_same_message_again(world: World, office: PostOffice) -> None:
    user = await verify(world, office)
    arm("mail.notification.after_send:raise")
    try:
        await world.deliver()
    finally:
        arm("")
    world.clock.advance(2)
    await world.deliver()
    first, second = (letter for letter in office.taken if letter["Subject"] == "Account Verified Successfully")
    assert first["Message-ID"] == second["Message-ID"], "so that the reader sees one"
    assert len(await world.mails(user.email)) == 2
    assert len(await world.front.get(Mailbox).list_push(user.id)) == 2


async def test_an_address_is_no_code_for_another() -> None:
    said: list[str] = []

    class Listening(SMTP):
        async def smtp_RCPT(self, arg: str) -> None:
            said.append(arg)
            await super().smtp_RCPT(arg)

    loop, coded = asyncio.get_running_loop(), "=?utf-8?q?ada?=@example.com"
    listening = await loop.create_server(
        lambda: Listening(PostOffice(), loop=loop, hostname="post.example"), "127.0.0.1"
    )
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        message = Message(new_id(), coded, "Subject", "text", "<p>html</p>")
        await Smtp(f"smtp://127.0.0.1:{port}", "hello@bedplate.example").send(message)
    assert said == [f"TO:<{coded}>"]


async def test_it_signs_in_where_the_url_says_so() -> None:
    async with offices(auth_require_tls=False) as office:
        await Smtp(f"smtp://bedplate%40example.com:p%40ss%2Fword%3A1@127.0.0.1:{office.port}", "a@b.example").ping()
        assert office.logins == [USER]
        with pytest.raises(Unavailable):
            await Smtp(f"smtp://bedplate%40example.com:wrong@127.0.0.1:{office.port}", "a@b.example").ping()


@dataclass(frozen=True)
class Certificate:
    """A certificate of 127.0.0.1 that nobody vouches for, and its key."""

    file: Path
    context: ssl.SSLContext


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "post.example")])
    today = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(today)
        .not_valid_after(today + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + made.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return Certificate(file, context)


MESSAGE = Message("1", "alice@example.com", "Hello", "Hello Alice", "<p>Hello Alice</p>")


async def test_it_uses_starttls_where_it_is_offered(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.file))
    async with offices(tls_context=certificate.context, require_starttls=True) as office:
        smtp = Smtp(f"smtp://bedplate%40example.com:p%40ss%2Fword%3A1@127.0.0.1:{office.port}", "a@b.example")
        await smtp.send(MESSAGE)
        assert office.logins == [USER]
        assert [letter["To"] for letter in office.taken] == [MESSAGE.to]


async def test_a_server_with_a_certificate_that_nobody_vouches_for_gets_neither_mail_nor_password(
    certificate: Certificate,
) -> None:
    async with offices(tls_context=certificate.context) as office:
        smtp = Smtp(f"smtp://bedplate%40example.com:p%40ss%2Fword%3A1@127.0.0.1:{office.port}", "a@b.example")
        with pytest.raises(Unavailable):
            await smtp.send(MESSAGE)
        assert (office.logins, office.taken) == ([], [])


async def test_a_server_that_is_not_there_or_says_nothing_sensible_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        await Smtp("smtp://127.0.0.1:1", "a@b.example").ping()

    def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    wrong = await asyncio.start_server(chatter, "127.0.0.1", 0)
    with pytest.raises(Unavailable):
        await Smtp(f"smtp://127.0.0.1:{wrong.sockets[0].getsockname()[1]}", "a@b.example").ping()
    wrong.close()
    await wrong.wait_closed()


@pytest.mark.parametrize("url", ["", "localhost:25", "http://host", "smtp://", "smtp://host:port", "smtp://host:99999"])
def test_a_wrong_url_is_the_operators_mistake(url: str) -> None:
    with pytest.raises(OperatorError, match="SMTP_URL is not a URL like"):
        Smtp(url, "a@b.example")
