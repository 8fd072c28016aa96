"""localstripe, an independent implementation of Stripe's API, on a free loopback port (its own command binds every
address). It is older than three parameters that are sent today; these are taken out before it looks.

    python -m tests.fakes.localstripe_server
"""

import asyncio
from typing import Any

from aiohttp import web
from localstripe import resources, server

UNKNOWN_TO_IT = ("allowed_payment_method_types", "error_on_requires_action", "description")

_create = resources.PaymentIntent._api_create.__func__


def _without_what_it_does_not_know(cls: Any, **data: Any) -> Any:
    return _create(cls, **{name: value for name, value in data.items() if name not in UNKNOWN_TO_IT})


async def main() -> None:
    resources.PaymentIntent._api_create = classmethod(_without_what_it_does_not_know)
    resources.store.dump_to_disk = lambda: None  # it would be written into /tmp
    runner = web.AppRunner(server.app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
