"""Mail by SMTP."""

from email.message import EmailMessage
from email.utils import localtime
from urllib.parse import unquote, urlsplit

import aiosmtplib

from bedplate.kernel.errors import Unavailable
from bedplate.kernel.settings import OperatorError
from bedplate.modules.mail.transport import Message, Transport

SEND_SECONDS = 20.0


class Smtp(Transport):
    """`smtp://` uses STARTTLS where the server offers it, `smtps://` TLS from the start."""

    keeps_text = False

    def __init__(self, url: str, sender: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise OperatorError("SMTP_URL is not a URL like smtp://user:password@host:587")
        self._host = parts.hostname
        self._tls = parts.scheme == "smtps"
        self._port = port or (465 if self._tls else 587)
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._sender = sender

    async def send(self, message: Message) -> None:
        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = self._sender, message.to, message.subject
        mail["Date"] = localtime()
        domain = self._sender.rpartition("@")[2].strip(">")
        mail["Message-ID"] = f"<{message.id}@{domain}>"
        mail.set_content(message.text)
        mail.add_alternative(message.html, subtype="html")
        try:
            async with self._client() as client:
                # To whom is said apart: read from the header, an address could come out as another.
                await client.send_message(mail, recipients=[message.to])
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Unavailable() from error

    async def ping(self) -> None:
        try:
            async with self._client() as client:
                await client.noop()
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Unavailable() from error

    def _client(self) -> aiosmtplib.SMTP:
        return aiosmtplib.SMTP(
            hostname=self._host,
            port=self._port,
            username=self._user,
            password=self._password,
            use_tls=self._tls,
            timeout=SEND_SECONDS,
        )
