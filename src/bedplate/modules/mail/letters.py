"""Letters: which event is answered with which mail."""

import time
from collections.abc import Mapping

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database
from bedplate.kernel.outbox import Delivery, Listener
from bedplate.modules.identity.events import PasswordResetRequested, UserCreated, VerificationRequested
from bedplate.modules.identity.public import Confirmations, EmailToken, Purpose
from bedplate.modules.mail.mailbox import keep_mail
from bedplate.modules.mail.templates import render
from bedplate.modules.mail.transport import EMAIL, Message, Observe, Transport, unobserved

SUBJECTS: Mapping[Purpose, str] = {
    Purpose.VERIFY: "Verify your email address",
    Purpose.RESET: "Reset your password",
}
PAGES: Mapping[Purpose, str] = {Purpose.VERIFY: "verify-email", Purpose.RESET: "reset-password"}


class Letters:
    """Listens to identity and mails what an account cannot do without: the tokens that prove an address."""

    def __init__(
        self,
        db: Database,
        confirmations: Confirmations,
        transport: Transport,
        clock: Clock,
        frontend_url: str,
        observe: Observe = unobserved,
    ) -> None:
        self._db = db
        self._confirmations = confirmations
        self._transport = transport
        self._clock = clock
        self._frontend = frontend_url.rstrip("/")
        self._observe = observe

    def listeners(self) -> list[Listener]:
        """What this module wants to hear."""
        return [
            Listener("mail.verification", UserCreated, self._verification),
            Listener("mail.verification", VerificationRequested, self._verification),
            Listener("mail.password-reset", PasswordResetRequested, self._password_reset),
        ]

    async def _verification(self, delivery: Delivery) -> None:
        await self._write(delivery, Purpose.VERIFY, delivery.event.email)

    async def _password_reset(self, delivery: Delivery) -> None:
        await self._write(delivery, Purpose.RESET, delivery.event.email)

    async def _write(self, delivery: Delivery, purpose: Purpose, email: str) -> None:
        if await delivery.handled(self._db):
            return
        began = time.perf_counter()
        token = await self._confirmations.issue_email_token(purpose, email, delivery.id, delivery.created_at)
        message = self._message(delivery.id, purpose, token) if token else None
        if message is not None:
            # First this: a crash in between sends it again, under the same Message-ID, and loses nothing.
            await self._transport.send(message)
        async with self._db.transaction() as tx:
            if not await delivery.first_time(tx) or message is None:
                return
            await keep_mail(tx, message, self._clock.now(), keeps_text=self._transport.keeps_text)
        self._observe(delivery.event.event_type(), EMAIL, time.perf_counter() - began)

    def _message(self, message_id: str, purpose: Purpose, issued: EmailToken) -> Message:
        link = f"{self._frontend}/{PAGES[purpose]}?token={issued.token}"
        if purpose is Purpose.VERIFY:
            link += f"&user_id={issued.user.id}"  # Commerce has it in the path of its operation
        text, html = render(purpose.value, issued.user, {"link": link, "token": issued.token})
        return Message(message_id, issued.user.email, SUBJECTS[purpose], text, html)
