"""Secrets: passwords (Argon2id), signed tokens (JWT, HS256), random tokens of which only hashes are kept."""

import asyncio
import hashlib
import os
import secrets
import sys
import threading
import unicodedata
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from bedplate.kernel.errors import Unavailable
from bedplate.kernel.secret import HASH_MEMORY_KIB, HASH_PASSES, MINIMUM_SECRET
from bedplate.kernel.settings import OperatorError, Settings

T = TypeVar("T")

MAXIMUM_TOKEN = 4096
MAXIMUM_WAITING = 1024
LATEST = 253_402_300_800  # the year 10000, which no time can express
REMEMBERED = 4096


class Passwords:
    """Argon2id, by default at the OWASP minimum (19 MiB, 2 passes, 1 lane), off the event loop, so many at once as
    cores."""

    def __init__(self, workers: int = 0, memory_kib: int = HASH_MEMORY_KIB, passes: int = HASH_PASSES) -> None:
        self._hasher = PasswordHasher(time_cost=passes, memory_cost=memory_kib, parallelism=1)
        self._pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, "hash", initializer=_yield_to_the_loop)
        self._waiting = 0
        self._dummy: str | None = None

    async def hash(self, password: str) -> str:
        """The hash to store."""
        return await self._off_loop(lambda: self._hasher.hash(_normal(password)))

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether the password is right. Without a stored hash the work is done all the same, and the answer is no."""
        return await self._off_loop(lambda: self._verify(stored, password))

    def outdated(self, stored: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _verify(self, stored: str | None, password: str) -> bool:
        if stored is None and self._dummy is None:
            # Made with today's parameters, else an unknown user would answer in another time than a known one.
            self._dummy = self._hasher.hash(secrets.token_urlsafe(16))
        try:
            self._hasher.verify(stored or self._dummy or "", _normal(password))
        except (VerificationError, InvalidHashError):
            return False
        return stored is not None

    async def _off_loop(self, work: Callable[[], T]) -> T:
        if self._waiting >= MAXIMUM_WAITING:
            raise Unavailable()
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1


class Tokens:
    """Signs and reads JWTs. What a token may be used for is its `type` and `aud`; the caller checks expiry."""

    ISSUER = "bedplate"

    def __init__(self, secret: str) -> None:
        self._key = OctKey.import_key(secret)
        # What a token says never changes: its signature is checked once, whatever else is asked about it again.
        self._known = lru_cache(maxsize=REMEMBERED)(self._read)

    def sign(self, claims: Mapping[str, Any]) -> str:
        """The same claims give the same token."""
        return jwt.encode({"alg": "HS256", "typ": "JWT"}, {"iss": self.ISSUER, **claims}, self._key)

    def read(self, token: str, *, type: str, audience: str) -> Mapping[str, Any] | None:
        """The claims, or None for anything not signed by us for this use. Expired tokens are read too."""
        if len(token) > MAXIMUM_TOKEN or not token.isascii():
            return None
        return self._known(token, type, audience)

    def _read(self, token: str, type: str, audience: str) -> Mapping[str, Any] | None:
        try:
            found = jwt.decode(token, self._key, algorithms=["HS256"])
        except (JoseError, ValueError, TypeError, KeyError):
            return None
        claims = found.claims
        ours = (
            found.header == {"alg": "HS256", "typ": "JWT"}
            and claims.get("iss") == self.ISSUER
            and claims.get("type") == type
            and claims.get("aud") == audience
            and isinstance(claims.get("exp"), int)
            and claims["exp"] < LATEST
            and "nbf" not in claims  # we never say it, so nobody has to wait for it
            and all(isinstance(claims.get(name), str) for name in ("sub", "jti"))
        )
        return MappingProxyType(claims) if ours else None


def random_token() -> str:
    """32 random bytes, hex."""
    return secrets.token_hex(32)


def digest(token: str) -> str:
    """What is stored of a random token: SHA-256, hex. Enough, because the token cannot be guessed."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def signing_secret(settings: Settings) -> str:
    """The configured secret, or one that is generated at the first start and kept in the data folder (mode 0600).

    Raises:
        OperatorError: the folder or the file cannot be used.
    """
    if settings.secret is not None:
        return settings.secret.get_secret_value()
    path = settings.data / "secret"
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _existing_or_new(path)
    except OSError as error:
        raise OperatorError(f"cannot use the data folder {settings.data}: {error.strerror}") from None


def _existing_or_new(path: Path) -> str:
    # Written whole under another name and then linked: two processes starting together agree on one secret,
    # and neither can read it half written.
    if not path.exists():
        draft = path.with_name(f".secret-{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            os.fsync(file.fileno())  # before its name: an empty secret after a power cut would end every session
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    secret = path.read_bytes().decode("ascii", "replace").strip()
    if len(secret) < MINIMUM_SECRET or not (secret.isascii() and secret.isprintable()):
        raise OperatorError(f"the secret in {path} is damaged; restore it, or delete the file to end all sessions")
    return secret


def _normal(password: str) -> bytes:
    # The same key presses give different code points on different machines. What is no text is a wrong password.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def _yield_to_the_loop() -> None:
    # Hashing is pure computation: it waits for the event loop, so that reads stay fast while many sign in.
    # Elsewhere than on Linux the number would be taken for a process.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
