"""Dev-PyNode API reference: WebSocket API. Errors are told on the socket and do not close it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs

import orjson
from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from bedplate.kernel.clock import iso
from bedplate.kernel.errors import InvalidField, Kind, Problem, TooMany, field_errors
from bedplate.kernel.http import Text
from bedplate.kernel.sockets import POLICY_VIOLATION, RESTARTING, TRY_AGAIN_LATER, Socket, SocketEnded, Sockets
from bedplate.modules.chat.public import Message
from bedplate.modules.identity.public import InvalidToken, Principal
from bedplate.systems.pynode import answers
from bedplate.systems.pynode.callers import Callers, address_subject, subject_of
from bedplate.systems.pynode.chat import ChatIn, begun_out, ended_out
from bedplate.systems.pynode.deps import Facades
from bedplate.systems.pynode.errors import error_body

log = logging.getLogger("bedplate.pynode")
router = APIRouter()

AUTH_SECONDS = 5.0
MAXIMUM_ANSWERS = 8  # that grow on one socket at once


class AuthIn(BaseModel):
    token: Text = Field(repr=False)


class SocketChatIn(ChatIn):
    """`ref`: comes back with whatever this message is answered with."""

    ref: Annotated[Text, Field(max_length=64)] | None = None


class ResumeIn(BaseModel):
    """`position`: of the last `chat_delta` that was received."""

    id: Annotated[Text, Field(max_length=64)]
    position: Annotated[int, Field(strict=True, ge=0, le=999_999_999)] = 0
    ref: Annotated[Text, Field(max_length=64)] | None = None


class AuthMessage(BaseModel):
    type: Literal["auth"]
    data: AuthIn


class ChatMessage(BaseModel):
    type: Literal["chat"]
    data: SocketChatIn


class ResumeMessage(BaseModel):
    type: Literal["resume"]
    data: ResumeIn


class PingMessage(BaseModel):
    type: Literal["ping"]


_messages: TypeAdapter[AuthMessage | ChatMessage | ResumeMessage | PingMessage] = TypeAdapter(
    Annotated[AuthMessage | ChatMessage | ResumeMessage | PingMessage, Field(discriminator="type")]
)


@router.websocket("/ws")
async def websocket(connection: WebSocket) -> None:
    talk: Talk = connection.app.state.talk
    await talk.hold(connection)


class Talk:
    """What is said on sockets. `required`: nothing is said to anybody who has not shown a token within five seconds."""

    def __init__(self, facades: Facades, callers: Callers, sockets: Sockets, *, required: bool) -> None:
        self._facades = facades
        self._callers = callers
        self._sockets = sockets
        self._required = required

    async def hold(self, connection: WebSocket) -> None:
        """One connection, from its beginning to its end."""
        async with self._sockets.open(connection.scope, connection._receive, connection._send) as socket:
            if socket is None:
                return
            conversation = _Conversation(self._facades, self._callers, self._sockets, socket, connection)
            try:
                await conversation.run(required=self._required)
            except SocketEnded:
                pass
            finally:
                await conversation.end()


class _Conversation:
    def __init__(
        self, facades: Facades, callers: Callers, sockets: Sockets, socket: Socket, connection: WebSocket
    ) -> None:
        self._facades = facades
        self._callers = callers
        self._sockets = sockets
        self._socket = socket
        self._address = address_subject(connection.scope)
        self._offered = parse_qs(connection.scope["query_string"].decode("latin-1")).get("token", [""])[0]
        self._token = ""
        self._caller: Principal | None = None
        self._growing: set[asyncio.Task[None]] = set()

    async def run(self, *, required: bool) -> None:
        """Until the peer goes, or has to. Raises SocketEnded."""
        if self._offered:
            await self._guarded(lambda: self._sign_in(AuthIn(token=self._offered)), None)
        if self._caller is None and not self._sockets.claim(self._socket, self._address):
            await self._leave(TRY_AGAIN_LATER, "too many connections")
        if required and self._caller is None:
            if not self._offered:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AUTH_SECONDS):
                        await self._step(strangers=False)
            if self._caller is None:
                await self._leave(POLICY_VIOLATION, "authentication required")
        stopping = self._socket.stopping
        if stopping is None:
            while True:
                await self._step()
        await self._until(stopping)

    async def end(self) -> None:
        """Nobody listens any more. Answers that are kept go on without."""
        for task in self._growing:
            task.cancel()
        await asyncio.gather(*self._growing, return_exceptions=True)

    async def _until(self, stopping: asyncio.Event) -> None:
        """Listen until the server ends, then send what is under way and say that it is worth coming back."""
        stop = asyncio.ensure_future(stopping.wait())
        try:
            while not stopping.is_set():
                step = asyncio.ensure_future(self._step())
                await asyncio.wait([step, stop], return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    step.cancel()
                    await asyncio.gather(step, return_exceptions=True)
                else:
                    step.result()
        finally:
            stop.cancel()
        if self._growing:
            await asyncio.wait(self._growing)
        await self._leave(RESTARTING, "restarting")

    async def _leave(self, code: int, reason: str) -> None:
        await self._socket.close(code, reason)
        raise SocketEnded(code)

    async def _step(self, *, strangers: bool = True) -> None:
        """Hear one message and act upon it. `strangers`: whether it may be anything but a token."""
        said = await self._socket.receive()
        if said.wait:
            self._tell_problem(TooMany(limit="60 messages per minute", retry_after=max(1, round(said.wait + 0.499))))
            return
        try:
            message = _messages.validate_json(said.text)
        except ValidationError as invalid:
            self._tell_problem(_invalid(invalid))
            return
        if isinstance(message, AuthMessage):
            await self._guarded(lambda: self._sign_in(message.data), None)
        elif not strangers:
            self._tell_problem(InvalidToken())
        elif isinstance(message, PingMessage):
            self._tell("pong", {})
        elif len(self._growing) >= MAXIMUM_ANSWERS:
            self._tell_problem(TooMany(limit=f"{MAXIMUM_ANSWERS} answers at once", retry_after=1), message.data.ref)
        elif isinstance(message, ChatMessage):
            self._begin(lambda: self._chat(message.data), message.data.ref)
        else:
            self._begin(lambda: self._resume(message.data), message.data.ref)

    def _begin(self, work: Callable[[], Any], ref: str | None) -> None:
        task = asyncio.create_task(self._guarded(work, ref))
        self._growing.add(task)
        task.add_done_callback(self._growing.discard)

    async def _guarded(self, work: Callable[[], Any], ref: str | None) -> None:
        """Whatever goes wrong is told, and nothing more."""
        try:
            await work()
        except Problem as problem:
            self._tell_problem(problem, ref)
        except SocketEnded:
            raise
        except Exception as error:
            log.error("unexpected error", exc_info=error)
            self._tell_problem(_Unexpected(), ref)

    async def _sign_in(self, body: AuthIn) -> None:
        caller = await self._callers.authenticate(body.token)
        if self._caller is not None and self._caller.user.id != caller.user.id:
            raise InvalidToken()  # whose answers grow here would be mixed up
        if not self._sockets.claim(self._socket, subject_of(caller)):
            await self._leave(TRY_AGAIN_LATER, "too many connections")
        self._caller, self._token = caller, body.token
        self._socket.proof = lambda: self._callers.authenticate(self._token)
        self._tell("auth_response", {"user_id": caller.user.id, "expires_at": iso(caller.expires_at)})

    async def _admitted(self) -> str | None:
        """The user who asks, if his session still holds; None for somebody unknown. Counts the request."""
        if self._caller is not None:
            self._caller = await self._callers.authenticate(self._token)
        subject = self._address if self._caller is None else subject_of(self._caller)
        counted = await self._callers.hit(subject, known=self._caller is not None)
        if counted is not None and counted.refusal is not None:
            raise counted.refusal
        return self._caller.user.id if self._caller is not None else None

    async def _chat(self, body: SocketChatIn) -> None:
        user_id = await self._admitted()
        if user_id is None and (body.conversation_id or body.file_ids):
            raise InvalidToken()
        message = await self._facades.chat.ask(user_id, body.question())
        begun = _begun(message, body.ref)
        self._tell("chat_start", begun)
        await self._follow(begun, answers.growing(self._facades.feeds, message.id))

    async def _resume(self, body: ResumeIn) -> None:
        user_id = await self._admitted()
        if user_id is None:
            raise InvalidToken()
        feeds, chat = self._facades.feeds, self._facades.chat
        message = await chat.get_message(user_id, body.id)
        parts = answers.rest_of(feeds, chat, message, body.position)
        await self._follow(_begun(message, body.ref), parts, user_id)

    async def _follow(
        self, begun: dict[str, Any], parts: AsyncGenerator[answers.Part, None], resumed_by: str | None = None
    ) -> None:
        """`resumed_by`: the peer has the beginning already, and gets all of it once more in the last message."""
        texts: list[str] = []
        async with aclosing(parts):
            async for part in parts:
                texts.append(part.text)
                if part.text:
                    delta = {"id": begun["id"], "text": part.text, "position": part.position}
                    self._tell("chat_delta", delta)
                if part.outcome is not None:
                    text = "".join(texts)
                    if resumed_by is not None:
                        text = (await self._facades.chat.get_message(resumed_by, begun["id"])).response or ""
                    self._tell("chat_response", {**begun, "message": text, **ended_out(part.outcome)})

    def _tell(self, kind: str, data: dict[str, Any]) -> None:
        self._socket.send(orjson.dumps({"type": kind, "data": data}).decode())

    def _tell_problem(self, problem: Problem, ref: str | None = None) -> None:
        body = error_body(problem)
        del body["error"]
        self._tell("error", _with_ref(body, ref))


class _Unexpected(Problem):
    kind = Kind.FAILED
    message = "An unexpected error occurred"


def _begun(message: Message, ref: str | None) -> dict[str, Any]:
    return _with_ref({**begun_out(message), "created_at": iso(message.created_at)}, ref)


def _with_ref(data: dict[str, Any], ref: str | None) -> dict[str, Any]:
    return data if ref is None else {**data, "ref": ref}


def _invalid(error: ValidationError) -> InvalidField:
    """The first thing that is wrong, without what was sent."""
    found = field_errors([{**each, "loc": ("message", *each["loc"])} for each in error.errors(include_input=False)])[0]
    parts = found.field.split(".")
    # Behind the name of the union's member, which the sender does not know.
    field = ".".join(parts[1:]) if parts[0] in ("auth", "chat", "resume", "ping") else found.field
    reason = "Malformed JSON" if found.type == "json_invalid" else found.reason
    if found.type.startswith("union_tag"):
        field, reason = "type", "Input should be auth, chat, resume or ping"
    return InvalidField(field=field.removeprefix("data.") or "message", reason=reason)
