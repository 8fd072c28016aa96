"""Signed links: whoever shows one may have what it names, until it expires, without signing in."""

import hashlib
import hmac
import re
from dataclasses import dataclass

from bedplate.kernel.clock import Clock

# Links that are asked for within a few minutes are the same one, so that caches know them again.
ROUNDED_TO = 300
_MOMENT = re.compile(r"[0-9]{1,12}\Z", re.ASCII)
_SIGNATURE = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Link:
    """`expires`: seconds since the epoch."""

    expires: int
    signature: str


class Links:
    """Of one purpose: the links of another are worth nothing here, though both come from the installation's secret."""

    def __init__(self, secret: str, purpose: str, clock: Clock) -> None:
        self._key = hmac.digest(secret.encode(), f"bedplate link: {purpose}".encode(), hashlib.sha256)
        self._clock = clock

    def issue(self, subject: str, seconds: int) -> Link:
        """A link to this that holds for so long, and up to five minutes more."""
        expires = int(self._clock.timestamp()) + seconds
        expires += -expires % ROUNDED_TO
        return Link(expires, self._sign(subject, expires))

    def holds(self, subject: str, expires: str, signature: str) -> bool:
        """Whether these two, as they stand in a link, are of this subject and not expired."""
        if not _MOMENT.match(expires) or not _SIGNATURE.match(signature):
            return False
        moment = int(expires)
        right = hmac.compare_digest(self._sign(subject, moment), signature)
        return right and moment > self._clock.timestamp() and str(moment) == expires

    def _sign(self, subject: str, expires: int) -> str:
        # The number cannot hold a colon: nothing of one part can be taken for the other.
        text = f"{expires}:{subject}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, hashlib.sha256).hex()
