"""Service keys: credentials of other programs, of which only hashes are stored."""

from sqlalchemy import bindparam, insert, select, update

from bedplate.kernel.cache import Cache
from bedplate.kernel.clock import Clock
from bedplate.kernel.db import Database
from bedplate.kernel.ids import is_id, new_id
from bedplate.kernel.security import digest, random_token
from bedplate.modules.identity import rules
from bedplate.modules.identity.models import ServiceKeyRow
from bedplate.modules.identity.public import (
    InvalidToken,
    NewServiceKey,
    ServiceKey,
    ServiceKeyNotFound,
    ServiceKeys,
)

PREFIX = "bp_"
MAXIMUM_LISTED = 1000
TAG = "service-keys"

_COLUMNS = (ServiceKeyRow.id, ServiceKeyRow.name, ServiceKeyRow.created_at, ServiceKeyRow.revoked_at)
_BY_HASH = select(*_COLUMNS).where(ServiceKeyRow.key_hash == bindparam("hashed"))


class ServiceKeysService(ServiceKeys):
    def __init__(self, db: Database, cache: Cache, clock: Clock) -> None:
        self._db = db
        self._cache = cache
        self._clock = clock

    async def create_key(self, name: str) -> NewServiceKey:
        new = NewServiceKey(new_id(), rules.name(name), PREFIX + random_token())
        row = {"id": new.id, "name": new.name, "key_hash": digest(new.key), "created_at": self._clock.now()}
        async with self._db.transaction() as tx:
            await tx.execute(insert(ServiceKeyRow), row)
        return new

    async def list_keys(self) -> list[ServiceKey]:
        newest_first = select(*_COLUMNS).order_by(ServiceKeyRow.created_at.desc()).limit(MAXIMUM_LISTED)
        return [ServiceKey(*row) for row in await self._db.all(newest_first)]

    async def revoke_key(self, key_id: str) -> None:
        revoke = update(ServiceKeyRow).where(ServiceKeyRow.id == key_id, ServiceKeyRow.revoked_at.is_(None))
        async with self._db.transaction() as tx:
            if not is_id(key_id) or not await tx.execute(revoke.values(revoked_at=self._clock.now())):
                raise ServiceKeyNotFound()
            tx.invalidate(TAG)

    async def authenticate_key(self, key: str) -> ServiceKey:
        hashed = digest(key)

        async def load() -> ServiceKey:
            row = await self._db.first(_BY_HASH, {"hashed": hashed})
            if row is None or row.revoked_at is not None:
                raise InvalidToken()
            return ServiceKey(*row)

        return await self._cache.get(f"service-key:{hashed}", load, lambda _: (TAG,))
