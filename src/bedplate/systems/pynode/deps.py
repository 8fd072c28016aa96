"""Dev-PyNode API reference: Authentication. What handlers are given: who is calling, and the facades."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from bedplate.kernel.blobs import Blobs
from bedplate.kernel.feeds import Feeds
from bedplate.kernel.http import BearerScheme
from bedplate.kernel.links import Links
from bedplate.modules.chat.public import Chat, Completions
from bedplate.modules.files.public import Files, Uploads
from bedplate.modules.identity.public import Principal, Principals, ServiceKey, ServiceKeys, Sessions, Users
from bedplate.systems.pynode.callers import Callers


@dataclass(frozen=True, slots=True)
class Facades:
    """What Dev-PyNode stands on."""

    users: Users
    sessions: Sessions
    principals: Principals
    keys: ServiceKeys
    chat: Chat
    completions: Completions
    feeds: Feeds
    files: Files
    uploads: Uploads
    blobs: Blobs
    links: Links


async def _users(request: Request) -> Users:
    return _facades(request).users


async def _sessions(request: Request) -> Sessions:
    return _facades(request).sessions


async def _chat(request: Request) -> Chat:
    return _facades(request).chat


async def _completions(request: Request) -> Completions:
    return _facades(request).completions


async def _feeds(request: Request) -> Feeds:
    return _facades(request).feeds


async def _files(request: Request) -> Files:
    return _facades(request).files


async def _uploads(request: Request) -> Uploads:
    return _facades(request).uploads


async def _blobs(request: Request) -> Blobs:
    return _facades(request).blobs


async def _links(request: Request) -> Links:
    return _facades(request).links


UsersDep = Annotated[Users, Depends(_users)]
SessionsDep = Annotated[Sessions, Depends(_sessions)]
ChatDep = Annotated[Chat, Depends(_chat)]
CompletionsDep = Annotated[Completions, Depends(_completions)]
FeedsDep = Annotated[Feeds, Depends(_feeds)]
FilesDep = Annotated[Files, Depends(_files)]
UploadsDep = Annotated[Uploads, Depends(_uploads)]
BlobsDep = Annotated[Blobs, Depends(_blobs)]
LinksDep = Annotated[Links, Depends(_links)]


class _Bearer(BearerScheme):
    """The account behind `Authorization: Bearer <access_token>`."""

    async def __call__(self, request: Request) -> Principal:
        callers: Callers = request.app.state.callers
        return await callers.principal(request.scope)


class _BearerOrKey(BearerScheme):
    """As _Bearer, or a program with a service key in the same header."""

    async def __call__(self, request: Request) -> Principal | ServiceKey:
        callers: Callers = request.app.state.callers
        return await callers.principal_or_program(request.scope)


Caller = Annotated[Principal, Depends(_Bearer())]
CallerOrProgram = Annotated[Principal | ServiceKey, Depends(_BearerOrKey())]


def _facades(request: Request) -> Facades:
    facades: Facades = request.app.state.facades
    return facades
