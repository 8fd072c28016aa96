"""Notifications: tells users what happened to their accounts, orders and payments, by mail and by push message."""

import time
from datetime import timedelta

from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database
from bedplate.kernel.failpoints import reach
from bedplate.kernel.outbox import Delivery, Listener
from bedplate.modules.identity.public import EMAIL_NOTIFICATIONS, PUSH_NOTIFICATIONS, Account, User, UserNotFound, Users
from bedplate.modules.mail.mailbox import keep_mail, keep_push, mailed_since
from bedplate.modules.mail.notices import NOTICES, Notice
from bedplate.modules.mail.templates import render
from bedplate.modules.mail.transport import EMAIL, PUSH, Message, Observe, Transport, unobserved
from bedplate.modules.orders.public import OrderNotFound, Orders


class Notifications:
    """Listens to identity, orders and payments. Whoever is not there any more is told nothing.

    `unconfirmed_mails`: at most so many a day to an address that nobody has confirmed."""

    def __init__(
        self,
        db: Database,
        users: Users,
        orders: Orders,
        transport: Transport,
        clock: Clock,
        currency: str,
        unconfirmed_mails: int,
        observe: Observe = unobserved,
    ) -> None:
        self._db = db
        self._users = users
        self._orders = orders
        self._transport = transport
        self._clock = clock
        self._currency = currency
        self._unconfirmed_mails = unconfirmed_mails
        self._observe = observe

    def listeners(self) -> list[Listener]:
        """What this module wants to hear."""
        return [Listener("mail.notification", event, self._notify) for event in NOTICES]

    async def _notify(self, delivery: Delivery) -> None:
        began = time.perf_counter()
        # Where no message leaves the database, the transaction tells a repeat in time; else look before sending.
        if not self._transport.keeps_text and await delivery.handled(self._db):
            return
        account = await self._told(delivery)
        if account is None:
            return
        user, preferences = account.user, account.profile.preferences
        notice = NOTICES[type(delivery.event)](delivery.event, user, self._currency)
        wanted = preferences[EMAIL_NOTIFICATIONS] and await self._may_write(user)
        message = _message(delivery.id, account, notice) if wanted else None
        if message is not None:
            # First this: a crash in between sends it again, under the same Message-ID, and loses nothing.
            await self._transport.send(message)
        await reach("mail.notification.after_send")
        async with self._db.transaction() as tx:
            if not await delivery.first_time(tx):
                return
            now = self._clock.now()
            if message is not None:
                await keep_mail(tx, message, now, keeps_text=self._transport.keeps_text)
            if preferences[PUSH_NOTIFICATIONS]:
                await keep_push(tx, user.id, delivery.id, notice.title, notice.push, now)
        await reach("mail.notification.after_commit")
        seconds = time.perf_counter() - began
        for channel, sent in ((EMAIL, message is not None), (PUSH, preferences[PUSH_NOTIFICATIONS])):
            if sent:
                self._observe(delivery.event.event_type(), channel, seconds)

    async def _may_write(self, user: User) -> bool:
        """An address that nobody has confirmed may be somebody else's, whom orders are not to flood with mail."""
        if user.email_verified:
            return True
        yesterday = self._clock.now() - timedelta(days=1)
        return await mailed_since(self._db, user.email, yesterday) < self._unconfirmed_mails

    async def _told(self, delivery: Delivery) -> Account | None:
        """Whom an event is about. Some events name the order only."""
        event = delivery.event
        try:
            user_id = (
                event.user_id if hasattr(event, "user_id") else (await self._orders.get_order(event.order_id)).user_id
            )
            account = await self._users.get_account(user_id)
        except (OrderNotFound, UserNotFound):
            return None
        # As for every other mail: who is locked out may have taken an address that is somebody else's.
        return None if account.user.disabled_at is not None else account


def _message(message_id: str, account: Account, notice: Notice) -> Message | None:
    if not notice.template:
        return None
    text, html = render(notice.template, account.user, notice.variables)
    return Message(message_id, account.user.email, notice.subject, text, html)
