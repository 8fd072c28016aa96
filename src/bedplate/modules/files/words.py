"""Full-text search in passages, by the database: FTS5 on SQLite, tsvector on PostgreSQL.

Every search names its files, so both look only at the passages of these. The words of a question are letters and
digits when they come here: nothing in them means anything to the language of either index.
"""

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import log

from sqlalchemy import BindParameter, bindparam, delete, func, insert, literal, select, text

from bedplate.kernel.db import Database, Id, Record, Transaction
from bedplate.modules.files.models import FileRow, PassageRow
from bedplate.modules.files.store import STORED

MAXIMUM_WORDS = 32
PART = 50
FEW = 50
# Places where words stand that one search collects: SQLite takes 3 µs for each, and nobody is answered meanwhile.
MAXIMUM_HITS = 10_000
LONGEST_WORD = 64
LOOKED_AT = 4000
_WORD = re.compile(r"[^\W_]+")

_IDS: BindParameter[str] = bindparam("ids", expanding=True)
_OWNER = bindparam("owner", type_=Id())
_INSERT = insert(PassageRow)
_WRITTEN = select(PassageRow.id, PassageRow.text).where(
    PassageRow.file_id == bindparam("file_id"), PassageRow.position >= bindparam("first")
)
_CLEAR = delete(PassageRow).where(
    PassageRow.id.in_(
        select(PassageRow.id).where(PassageRow.file_id == bindparam("file_id")).limit(PART).scalar_subquery()
    )
)
_TOTAL = select(func.count()).select_from(PassageRow).where(PassageRow.file_id.in_(_IDS))
_BEGINNINGS = (
    select(PassageRow.file_id, FileRow.filename, PassageRow.position, PassageRow.text, literal(0.0).label("score"))
    .join(FileRow, FileRow.id == PassageRow.file_id)
    .where(
        PassageRow.file_id.in_(_IDS),
        PassageRow.position < bindparam("each"),
        FileRow.owner_id == bindparam("owner"),
        FileRow.status == STORED,
    )
    .order_by(PassageRow.position, PassageRow.file_id)
    .limit(bindparam("limit"))
)


def words_of(question: str) -> list[str]:
    """The words to look for, each once, in their order."""
    found = (word[:LONGEST_WORD] for word in _WORD.findall(question[:LOOKED_AT].casefold()))
    return list(dict.fromkeys(found))[:MAXIMUM_WORDS]


def telling(found: Mapping[str, int], total: int) -> list[tuple[str, int]]:
    """Of the words and in how many passages each stands, those that are worth collecting, the rarest first. What stands
    in most of many passages says little of each, and takes the longest."""
    common = max(total // 2, FEW)
    rare = {word: number for word, number in found.items() if number <= common} or found
    kept: list[tuple[str, int]] = []
    hits = 0
    for word, number in sorted(rare.items(), key=lambda each: each[1]):
        hits += number
        if kept and hits > MAXIMUM_HITS:
            break
        kept.append((word, number))
    return kept


class Words(ABC):
    """The index of one database. What was indexed of a passage goes with its row: the databases see to it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    @abstractmethod
    async def index(self, tx: Transaction, file_id: str, rows: Sequence[Record]) -> None:
        """Passages (id, text) of a file that have been written."""

    @abstractmethod
    async def search(self, owner_id: str, file_ids: list[str], words: list[str], limit: int) -> Sequence[Record]:
        """Passages (file, its name, position, text, score) of this owner's files that hold any of the words."""

    async def write(self, tx: Transaction, file_id: str, passages: list[str]) -> None:
        """What a file says that nothing was written of."""
        rows = [{"file_id": file_id, "position": at, "text": passage} for at, passage in enumerate(passages)]
        for first in range(0, len(rows), PART):
            # All of it is one transaction, which writers wait for; readers, between its parts, do not.
            await asyncio.sleep(0)
            await tx.execute(_INSERT, rows[first : first + PART])
            await self.index(tx, file_id, await tx.all(_WRITTEN, {"file_id": file_id, "first": first}))

    async def clear(self, file_id: str) -> None:
        """Forget what was written of a file that is gone."""
        while True:
            async with self._db.transaction() as tx:
                if not await tx.execute(_CLEAR, {"file_id": file_id}):
                    return

    async def beginnings(self, owner_id: str, file_ids: list[str], limit: int) -> Sequence[Record]:
        """The first passages (file, its name, position, text, no score) of each of this owner's files."""
        wanted = {"ids": file_ids, "owner": owner_id, "each": -(-limit // len(file_ids)), "limit": limit}
        return await self._db.all(_BEGINNINGS, wanted)


class SqliteWords(Words):
    """FTS5. A word weighs as much as bm25 would have it, but counted in the files that are asked. FTS5's own function
    counts it in the files of all users: that takes the longer the more there is, and ranks by what others have."""

    _INDEX = text("INSERT INTO files_words (rowid, file, text) VALUES (:id, :file, :text)")
    # `file` is a column of the index too: the passages of other files are leapt over.
    _COUNT = text(
        """
        SELECT asked.key AS word, count(*) AS passages
        FROM json_each(:asked) AS asked JOIN files_words ON files_words MATCH asked.value
        GROUP BY asked.key
        """
    )
    _FIND = text(
        """
        WITH hit AS (
            SELECT files_words.rowid AS id, sum(json_extract(asked.value, '$[1]')) AS score
            FROM json_each(:asked) AS asked JOIN files_words ON files_words MATCH json_extract(asked.value, '$[0]')
            GROUP BY files_words.rowid
        )
        SELECT passage.file_id, file.filename, passage.position, passage.text, hit.score
        FROM hit
        JOIN files_passages AS passage ON passage.id = hit.id
        JOIN files_files AS file ON file.id = passage.file_id
        WHERE passage.file_id IN :ids AND file.owner_id = :owner AND file.status = 'stored'
        ORDER BY hit.score DESC, passage.file_id, passage.position LIMIT :limit
        """
    ).bindparams(_IDS, _OWNER)

    async def index(self, tx: Transaction, file_id: str, rows: Sequence[Record]) -> None:
        await tx.execute(self._INDEX, [{"id": row.id, "file": _token(file_id), "text": row.text} for row in rows])

    async def search(self, owner_id: str, file_ids: list[str], words: list[str], limit: int) -> Sequence[Record]:
        files = " OR ".join(f'"{_token(file_id)}"' for file_id in file_ids)
        asked = [f'file : ({files}) AND text : "{word}"' for word in words]
        counted = await self._db.all(self._COUNT, {"asked": json.dumps(asked)})
        total = int(await self._db.scalar(_TOTAL, {"ids": file_ids}))
        found = {asked[row.word]: row.passages for row in counted}
        weighed = [[question, _weight(number, total)] for question, number in telling(found, total)]
        wanted = {"ids": file_ids, "owner": owner_id, "asked": json.dumps(weighed), "limit": limit}
        return await self._db.all(self._FIND, wanted) if weighed else []


class PostgresWords(Words):
    """tsvector, ranked by ts_rank. No index over all files: that of the passages of one is the shorter way."""

    _INDEX = text("INSERT INTO files_words (passage_id, words) VALUES (:id, to_tsvector('english', :text))")
    _FIND = text(
        """
        SELECT passage.file_id, file.filename, passage.position, passage.text, ts_rank(word.words, question, 1) AS score
        FROM to_tsquery('english', :question) AS question, files_words AS word
        JOIN files_passages AS passage ON passage.id = word.passage_id
        JOIN files_files AS file ON file.id = passage.file_id
        WHERE word.words @@ question AND passage.file_id IN :ids AND file.owner_id = :owner
        AND file.status = 'stored'
        ORDER BY score DESC, passage.file_id, passage.position LIMIT :limit
        """
    ).bindparams(_IDS, _OWNER)

    async def index(self, tx: Transaction, file_id: str, rows: Sequence[Record]) -> None:
        await tx.execute(self._INDEX, [{"id": row.id, "text": row.text} for row in rows])

    async def search(self, owner_id: str, file_ids: list[str], words: list[str], limit: int) -> Sequence[Record]:
        question = " | ".join(f"'{word}'" for word in words)
        wanted = {"ids": file_ids, "owner": owner_id, "question": question, "limit": limit}
        return await self._db.all(self._FIND, wanted) if words else []


def words_in(db: Database) -> Words:
    """The index of this database."""
    return SqliteWords(db) if db.dialect.name == "sqlite" else PostgresWords(db)


def _token(file_id: str) -> str:
    """An id as one word."""
    return file_id.replace("-", "")


def _weight(passages: int, total: int) -> float:
    """Of a word that so many passages of all have: the fewer, the more."""
    return log(1 + (total - passages + 0.5) / (passages + 0.5))
