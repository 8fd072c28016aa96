"""The mailbox: where mail is read as long as no SMTP server is set."""

import re

import pytest

from bedplate.kernel.ids import new_id
from bedplate.modules.identity.public import Confirmations, Registration, Users
from bedplate.modules.mail.public import Mailbox, MailNotFound
from tests import factories
from tests.factories import PASSWORD
from tests.world import World


async def test_mail_is_listed_newest_first_and_shown_whole(world: World) -> None:
    mailbox, users = world.front.get(Mailbox), world.front.get(Users)
    addresses = [factories.email() for _ in range(3)]
    for address in addresses:
        await users.register(Registration(address, PASSWORD))
        await world.deliver()
        world.clock.advance(1)
    listed = await mailbox.list_mail()
    assert [mail.to for mail in listed] == addresses[::-1]
    assert [mail.to for mail in await mailbox.list_mail(limit=1, offset=1)] == [addresses[1]]
    assert [mail.to for mail in await mailbox.list_mail(to=addresses[0])] == [addresses[0]]
    assert await mailbox.get_mail(listed[0].id) == listed[0]
    assert len(await mailbox.list_mail(limit=10**9)) == 3


async def test_unknown_mail_is_not_found(world: World) -> None:
    for mail_id in ("", "1", "\0", new_id()):
        with pytest.raises(MailNotFound):
            await world.front.get(Mailbox).get_mail(mail_id)


async def test_a_letter_greets_by_name_says_what_to_do_and_links_the_frontend(world: World) -> None:
    user = await world.front.get(Users).register(Registration(factories.email(), PASSWORD, name="Alice"))
    await world.front.get(Confirmations).request_password_reset(user.email)
    reset, verify = sorted(await world.mails(user.email), key=lambda mail: mail.subject)
    assert (verify.subject, reset.subject) == ("Verify your email address", "Reset your password")
    for mail, page in ((verify, "verify-email"), (reset, "reset-password")):
        assert mail.text.startswith("Hello Alice,")
        assert f"http://localhost:3000/{page}?token=" in mail.text
        assert f"http://localhost:3000/{page}?token=" in mail.html
    assert re.search(rf"/verify-email\?token=[0-9a-f]{{64}}&user_id={user.id}$", verify.text, re.MULTILINE)
    assert re.search(rf"/verify-email\?token=[0-9a-f]{{64}}&amp;user_id={user.id}\"", verify.html)
    assert "user_id" not in reset.text + reset.html
    assert "24 hours" in verify.text
    assert "one hour" in reset.text


async def test_a_name_cannot_put_markup_into_a_letter(world: World) -> None:
    name = "<b>{{ token }}</b> & <script>alert(1)</script>"
    user = await world.front.get(Users).register(Registration(factories.email(), PASSWORD, name=name))
    [mail] = await world.mails(user.email)
    assert "<script>" not in mail.html
    assert "alert" not in mail.html + mail.text
    assert "Hello," in mail.text, "only plain names are greeted"
