"""Notifications: what users are told of their accounts, orders and payments, in each deployment."""

import asyncio
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest
from jinja2 import UndefinedError

from bedplate.kernel.events import Event
from bedplate.kernel.failpoints import FailpointReached, arm
from bedplate.kernel.ids import new_id
from bedplate.kernel.outbox import Delivery, emit, waiting
from bedplate.modules.identity.events import UserCreated, UserVerified
from bedplate.modules.identity.public import Confirmations, Details, Profile, Purpose, Registration, User, Users
from bedplate.modules.mail.letters import Letters
from bedplate.modules.mail.mailbox import KEPT_PUSHES
from bedplate.modules.mail.notices import NOTICES
from bedplate.modules.mail.notifications import Notifications
from bedplate.modules.mail.public import Mail, Mailbox, Push
from bedplate.modules.mail.templates import render
from bedplate.modules.mail.transport import MailboxOnly, Transport
from bedplate.modules.orders.events import OrderCancelled, OrderConfirmed, OrderCreated
from bedplate.modules.orders.public import Order, OrderItem, Orders
from bedplate.modules.payments.events import PaymentCompleted, PaymentFailed
from tests import factories
from tests.factories import PASSWORD
from tests.world import World

UNCONFIRMED_MAILS = 5
NOW = "2026-11-22T12:00:00Z"
ITEMS = [
    {"product_id": "prod-1", "quantity": 2, "price": 29.99},
    {"product_id": "prod-2", "quantity": 1, "price": 15.5},
]
PAYMENT, TRANSACTION = f"pay-{new_id()}", f"txn-{new_id()}"


@dataclass
class Post:
    """Hands events to the listeners of mail, as the relay does, and looks at what became of them."""

    world: World
    observed: list[tuple[str, str, float]] = field(default_factory=list)
    transport: Transport = field(default_factory=MailboxOnly)

    def delivery(self, event: Event) -> Delivery:
        return Delivery(event, new_id(), "mail.notification", self.world.clock.now())

    async def hand(self, *events: Event) -> None:
        for event in events:
            await self.again(self.delivery(event))

    async def again(self, delivery: Delivery) -> None:
        assert self.world.runtime.database is not None
        front = self.world.front
        notifications = Notifications(
            self.world.runtime.database,
            front.get(Users),
            front.get(Orders),
            self.transport,
            self.world.clock,
            "USD",
            UNCONFIRMED_MAILS,
            lambda *observed: self.observed.append(observed),
        )
        for listener in notifications.listeners():
            if listener.event is type(delivery.event):
                await listener.handle(replace(delivery, consumer=listener.name))

    async def mails(self, user: User) -> list[Mail]:
        return await self.world.front.get(Mailbox).list_mail(to=user.email)

    async def pushes(self, user: User, limit: int = KEPT_PUSHES) -> list[Push]:
        return await self.world.front.get(Mailbox).list_push(user.id, limit)

    async def told(self, user: User) -> tuple[list[str], list[str]]:
        """Subjects of mails, and titles of push messages, newest first."""
        subjects = [mail.subject for mail in await self.mails(user)]
        return subjects, [push.title for push in await self.pushes(user)]


@pytest.fixture
def post(world: World) -> Post:
    return Post(world)


@pytest.fixture
async def user(world: World) -> User:
    """With a verified address."""
    users, confirmations = world.front.get(Users), world.front.get(Confirmations)
    user = await users.register(Registration(factories.email(), PASSWORD, first_name="Alice"))
    issued = await confirmations.issue_email_token(Purpose.VERIFY, user.email, "a test", world.clock.now())
    assert issued is not None
    return await confirmations.verify_email(issued.token)


@pytest.fixture
async def order(world: World, user: User) -> Order:
    items = [OrderItem("prod-1", 2, Decimal("29.99")), OrderItem("prod-2", 1, Decimal("15.50"))]
    return await world.front.get(Orders).place(user.id, items)


def events_of(user: User, order: Order) -> dict[type[Event], Event]:
    """One event of each type that is told of, about this user."""
    events: list[Event] = [
        UserCreated(user.id, user.email, user.username, NOW),
        UserVerified(user.id, NOW),
        OrderCreated(order.id, user.id, 75.48, ITEMS, NOW),
        OrderConfirmed(order.id, PAYMENT, NOW),
        OrderCancelled(order.id, user.id, "payment_failed", NOW),
        PaymentCompleted(PAYMENT, order.id, user.id, 75.48, "USD", TRANSACTION, NOW),
        PaymentFailed(PAYMENT, order.id, "Insufficient funds", "INSUFFICIENT_FUNDS", NOW),
    ]
    return {type(event): event for event in events}


# Event, subject, title, what the mail has to say, what the push message says.
TOLD: list[tuple[type[Event], str, str, tuple[str, ...], str]] = [
    (
        UserVerified,
        "Account Verified Successfully",
        "Account Verified",
        ("is verified",),
        "Your account has been verified.",
    ),
    (
        OrderCreated,
        "Order Received - {order}",
        "Order Received",
        ("{order}", "2", "prod-1", "29.99", "1", "prod-2", "15.50", "75.48 USD"),
        "We have received your order {order} over 75.48 USD.",
    ),
    (
        OrderConfirmed,
        "Order Confirmation - {order}",
        "Order Confirmed",
        ("{order}", "paid and confirmed", PAYMENT),
        "Your order {order} has been paid and confirmed.",
    ),
    (
        OrderCancelled,
        "Order Cancelled - {order}",
        "Order Cancelled",
        ("{order}", "has been cancelled, because its payment failed."),
        "Your order {order} has been cancelled.",
    ),
    (
        PaymentCompleted,
        "Payment Confirmation - Order {order}",
        "Payment Successful",
        ("{order}", "75.48 USD", TRANSACTION),
        "Your payment of 75.48 USD for order {order} was successful.",
    ),
    (
        PaymentFailed,
        "Payment Failed - Order {order}",
        "Payment Failed",
        ("{order}", "nothing was charged", "Insufficient funds"),
        "Your payment for order {order} failed: Insufficient funds",
    ),
]


async def test_each_event_is_told_in_one_mail_and_one_push_message(post: Post, user: User, order: Order) -> None:
    events = events_of(user, order)
    assert {UserCreated, *(each for each, *_ in TOLD)} == set(NOTICES) == set(events)
    for number, (kind, subject, title, said, pushed) in enumerate(TOLD, start=1):
        post.world.clock.advance(1)
        delivery = post.delivery(events[kind])
        await post.again(delivery)
        mails, pushes = await post.mails(user), await post.pushes(user)
        assert (len(mails), len(pushes)) == (number, number), kind
        assert mails[0].subject == subject.format(order=order.id)
        assert mails[0].text.startswith("Hello Alice,\n")
        assert mails[0].html.startswith("<!doctype html>")
        for words in said:
            assert words.format(order=order.id) in mails[0].text, kind
            assert words.format(order=order.id) in mails[0].html, kind
        assert (pushes[0].title, pushes[0].body) == (title, pushed.format(order=order.id))
        assert pushes[0].event_id == delivery.id


async def test_a_new_account_is_welcomed_and_mailed_the_token_that_verifies_it(world: World, post: Post) -> None:
    user = await world.front.get(Users).register(Registration(factories.email(), PASSWORD))
    [mail] = await world.mails(user.email)
    assert mail.subject == "Verify your email address"
    [push] = await post.pushes(user)
    assert push.title == "Welcome"
    token = mail.text.split("token, it is this one:\n\n")[1].split("\n")[0]
    assert f"<code>{token}</code>" in mail.html
    assert (await world.front.get(Confirmations).verify_user(user.id, token)).user.email_verified
    verified, _ = await world.mails(user.email)
    assert verified.subject == "Account Verified Successfully"
    assert [push.title for push in await post.pushes(user)] == ["Account Verified", "Welcome"]


async def test_what_is_said_in_a_transaction_reaches_the_user(
    world: World, post: Post, user: User, order: Order
) -> None:
    await world.deliver()
    said = [event for kind, event in events_of(user, order).items() if kind in (OrderCancelled, UserVerified)]
    before = len(await post.pushes(user))
    assert world.runtime.database is not None
    async with world.runtime.database.transaction() as tx:
        for event in said:
            await emit(tx, event, world.clock.now())
    await world.deliver()
    assert len(await post.pushes(user)) == before + 2
    assert await waiting(world.runtime.database) == 0


async def test_an_order_that_is_placed_is_told_as_it_was_placed(
    world: World, post: Post, user: User, order: Order
) -> None:
    [mail] = [mail for mail in await world.mails(user.email) if order.id in mail.subject]
    assert mail.subject == f"Order Received - {order.id}"
    for words in ("2 x prod-1 at 29.99\n1 x prod-2 at 15.50\n", f"Total: {order.total}"):
        assert words in mail.text


async def test_an_event_that_is_delivered_often_is_told_once(post: Post, user: User, order: Order) -> None:
    for event in events_of(user, order).values():
        delivery = post.delivery(event)
        for _ in range(3):
            await post.again(delivery)
    subjects, titles = await post.told(user)
    assert (len(subjects), len(titles)) == (6, 7)
    assert len(post.observed) == 6 + 7


async def test_an_event_that_is_delivered_at_the_same_moment_is_told_once(post: Post, user: User, order: Order) -> None:
    deliveries = [post.delivery(event) for event in events_of(user, order).values()]
    # Of two that meet at the inbox one may fail: the relay tries it again.
    await asyncio.gather(*(post.again(each) for each in deliveries for _ in range(4)), return_exceptions=True)
    for each in deliveries:
        await post.again(each)
    subjects, titles = await post.told(user)
    assert (len(set(subjects)), len(subjects)) == (6, 6)
    assert (len(set(titles)), len(titles)) == (7, 7)


async def test_one_crash_anywhere_is_made_good_by_the_next_delivery(post: Post, user: User, order: Order) -> None:
    for number, place in enumerate(("mail.notification.after_send", "mail.notification.after_commit"), start=1):
        delivery = post.delivery(events_of(user, order)[PaymentCompleted])
        arm(f"{place}:raise")
        try:
            with pytest.raises(FailpointReached):
                await post.again(delivery)
        finally:
            arm("")
        await post.again(delivery)
        subjects, titles = await post.told(user)
        assert (len(subjects), len(titles)) == (number, number)


@pytest.mark.parametrize(
    ("preferences", "mails", "pushes"),
    [
        ({}, 6, 7),
        ({"email_notifications": False}, 0, 7),
        ({"push_notifications": False}, 6, 0),
        ({"email_notifications": False, "push_notifications": False}, 0, 0),
    ],
)
async def test_whoever_switched_a_channel_off_is_told_nothing_by_it(
    post: Post, user: User, order: Order, preferences: dict[str, bool], mails: int, pushes: int
) -> None:
    await post.world.front.get(Users).update_details(user.id, Details(profile=Profile(preferences=preferences)))
    await post.hand(*events_of(user, order).values())
    subjects, titles = await post.told(user)
    assert (len(subjects), len(titles)) == (mails, pushes)
    channels = [channel for _, channel, _ in post.observed]
    assert (channels.count("email"), channels.count("push")) == (mails, pushes)


async def test_mails_that_an_account_cannot_do_without_are_always_sent(world: World) -> None:
    users, confirmations = world.front.get(Users), world.front.get(Confirmations)
    user = await users.register(Registration(factories.email(), PASSWORD))
    silent = {"email_notifications": False, "push_notifications": False}
    await users.update_details(user.id, Details(profile=Profile(preferences=silent)))
    await confirmations.request_password_reset(user.email)
    subjects = sorted(mail.subject for mail in await world.mails(user.email))
    assert subjects == ["Reset your password", "Verify your email address"]


async def test_a_user_who_was_deleted_is_told_nothing(post: Post, user: User, order: Order) -> None:
    events = list(events_of(user, order).values())
    await post.world.front.get(Users).delete_user(user.id, new_id())
    await post.hand(*events)
    assert await post.told(user) == ([], [])
    assert post.observed == []


async def test_a_user_who_is_locked_out_is_told_nothing(post: Post, user: User, order: Order) -> None:
    await post.world.front.get(Users).disable_user(user.id, new_id())
    await post.hand(*events_of(user, order).values())
    assert await post.told(user) == ([], [])


async def test_of_an_order_that_is_not_there_nobody_is_told(post: Post, user: User) -> None:
    for order_id in (f"order-{new_id()}", "order-1", ""):
        await post.hand(
            OrderConfirmed(order_id, PAYMENT, NOW),
            PaymentFailed(PAYMENT, order_id, "Declined", "CARD_DECLINED", NOW),
        )
    await post.hand(OrderCancelled("order-1", "nobody", "gone", NOW))
    assert await post.told(user) == ([], [])
    assert await post.world.front.get(Mailbox).list_mail() == []


def order_of(user: User, *product_ids: str) -> OrderCreated:
    items: list[dict[str, Any]] = [{"product_id": each, "quantity": 1, "price": 1.0} for each in product_ids]
    return OrderCreated(f"order-{new_id()}", user.id, float(len(items)), items, NOW)


async def test_what_a_client_calls_a_product_is_shown_as_text_and_cut(post: Post, user: User) -> None:
    evil = "<b>{{ total }}</b> & <script>alert(1)</script>"
    await post.hand(order_of(user, evil, "x" * 100, "line\nend\x07"))
    [mail] = await post.mails(user)
    assert "&lt;b&gt;{{ total }}&lt;/b&gt; &amp; &lt;script&gt;" in mail.html
    assert "<b>" not in mail.html
    assert "<script" not in mail.html
    for text in (mail.text, mail.html):
        assert f"{'x' * 39}… at 1.00" in text
        assert "line end  at 1.00" in text
        assert "alert(1)</script>" not in text, "cut at 40 characters"
    assert "<b>" not in mail.subject


async def test_an_order_of_many_items_is_told_by_the_first_twenty(post: Post, user: User) -> None:
    await post.hand(order_of(user, *(f"prod-{number}" for number in range(100, 125))))
    [mail] = await post.mails(user)
    for text in (mail.text, mail.html):
        assert (text.count("prod-"), "prod-119" in text, "and 5 more" in text) == (20, True, True)
        assert "25.00" in text


async def test_an_address_that_nobody_has_verified_gets_no_words_of_a_client(world: World, post: Post) -> None:
    spam = "Win at spam.example"
    user = await world.front.get(Users).register(Registration(factories.email(), PASSWORD, first_name=spam))
    await post.hand(order_of(user, spam))
    [mail] = await post.mails(user)
    assert spam not in mail.text + mail.html
    assert "1.00" in mail.text
    [push] = await post.pushes(user)
    assert spam not in push.body


async def test_of_the_reasons_for_a_cancellation_only_a_failed_payment_is_told(post: Post, user: User) -> None:
    await post.hand(OrderCancelled("order-1", user.id, "<b>You are stupid</b>", NOW))
    [mail] = await post.mails(user)
    for text in (mail.text, mail.html):
        assert "stupid" not in text
        assert "If you have paid for it, the money is given back." in text


async def test_the_reason_of_a_failed_payment_is_shown_as_text_and_cut(post: Post, user: User, order: Order) -> None:
    await post.hand(PaymentFailed(PAYMENT, order.id, "<i>Declined</i>\n" + "y" * 500, "CARD_DECLINED", NOW))
    [mail], [push] = await post.mails(user), await post.pushes(user)
    assert "&lt;i&gt;Declined&lt;/i&gt; yyy" in mail.html
    assert mail.text.count("y" * 83 + "…\n") == 1
    assert "\n" not in push.body
    assert len(push.body) < 250


async def test_every_channel_is_counted_with_the_time_it_took(post: Post, user: User, order: Order) -> None:
    await post.hand(*events_of(user, order).values())
    counted = [(kind, channel) for kind, channel, _ in post.observed]
    assert counted == [
        ("user_created", "push"),
        *(
            (kind.event_type(), channel)
            for kind in (UserVerified, OrderCreated, OrderConfirmed, OrderCancelled, PaymentCompleted, PaymentFailed)
            for channel in ("email", "push")
        ),
    ]
    assert all(0 < seconds < 10 for _, _, seconds in post.observed)


async def test_a_mail_with_a_token_is_counted_like_every_other(world: World, post: Post) -> None:
    user = await world.front.get(Users).register(Registration(factories.email(), PASSWORD))
    assert world.runtime.database is not None
    letters = Letters(
        world.runtime.database,
        world.front.get(Confirmations),
        post.transport,
        world.clock,
        "http://localhost:3000",
        lambda *observed: post.observed.append(observed),
    )
    [listener] = [each for each in letters.listeners() if each.event is UserCreated]
    delivery = replace(post.delivery(UserCreated(user.id, user.email)), consumer=listener.name)
    for _ in range(2):
        await listener.handle(delivery)
    assert [(kind, channel) for kind, channel, _ in post.observed] == [("user_created", "email")]
    assert len(await post.mails(user)) == 1


async def test_the_last_fifty_push_messages_of_each_user_are_kept_newest_first(
    world: World, post: Post, user: User
) -> None:
    other = await world.front.get(Users).register(Registration(factories.email(), PASSWORD))
    await post.hand(UserVerified(other.id, NOW))
    deliveries = [post.delivery(UserVerified(user.id, NOW)) for _ in range(KEPT_PUSHES + 3)]
    for delivery in deliveries:
        await post.again(delivery)
    kept = await post.pushes(user)
    assert [push.event_id for push in kept] == [delivery.id for delivery in deliveries[:2:-1]]
    assert await post.pushes(user, 2) == kept[:2]
    assert await post.pushes(user, 10**9) == kept
    assert len(await post.pushes(user, 0)) == 1
    assert len(await post.pushes(other)) == 1, "of others none is forgotten"
    for nobody in ("", "1", "\0", new_id()):
        assert await world.front.get(Mailbox).list_push(nobody) == []


async def test_a_template_that_lacks_something_is_an_error_and_no_half_mail(user: User) -> None:
    with pytest.raises(UndefinedError):
        render("order_confirmed", user, {"order_id": "order-1"})


async def test_an_address_that_nobody_has_confirmed_is_not_flooded(post: Post, order: Order) -> None:
    users, clock = post.world.front.get(Users), post.world.clock
    stranger = await users.register(Registration(factories.email(), PASSWORD))
    event = OrderCreated(order.id, stranger.id, 75.48, ITEMS, NOW)
    await post.hand(*[event] * (UNCONFIRMED_MAILS + 5))
    assert len(await post.mails(stranger)) == UNCONFIRMED_MAILS
    assert len(await post.pushes(stranger)) == UNCONFIRMED_MAILS + 5
    clock.advance(25 * 3600)
    await post.hand(event)
    assert len(await post.mails(stranger)) == UNCONFIRMED_MAILS + 1


async def test_whoever_has_confirmed_the_address_gets_all_of_it(post: Post, user: User, order: Order) -> None:
    event = OrderCreated(order.id, user.id, 75.48, ITEMS, NOW)
    await post.hand(*[event] * (UNCONFIRMED_MAILS + 5))
    assert len(await post.mails(user)) == UNCONFIRMED_MAILS + 5
