"""Chat: the implementation of the Chat facade. What goes on after a question is noted is in answers.py."""

from datetime import timedelta

from bedplate.kernel.clock import Clock
from bedplate.kernel.outbox import Delivery, Listener
from bedplate.kernel.paging import Page, Slice
from bedplate.modules.chat import prompt, rules
from bedplate.modules.chat.answers import Answers, Work
from bedplate.modules.chat.public import (
    AnswerStatus,
    Chat,
    ConversationMissing,
    Message,
    MessageMissing,
    Question,
    Turn,
    UsageOfModel,
)
from bedplate.modules.chat.registry import Registry
from bedplate.modules.chat.store import ChatStore
from bedplate.modules.files.public import Passage, Passages
from bedplate.modules.identity.events import UserDeleted

MAXIMUM_DAYS = 92


class ChatService(Chat):
    def __init__(
        self, store: ChatStore, registry: Registry, answers: Answers, passages: Passages, clock: Clock
    ) -> None:
        self._store = store
        self._registry = registry
        self._answers = answers
        self._passages = passages
        self._clock = clock

    def listeners(self) -> list[Listener]:
        """What this module wants to hear."""
        return [Listener("chat.owners", UserDeleted, self._forget)]

    async def ask(self, user_id: str | None, question: Question) -> Message:
        text = rules.checked(question)
        route = self._registry.route(question.model)
        history = await self._history(user_id, question.conversation_id)
        passages = await self._search(user_id, question.file_ids, text)
        message = Message(
            id=rules.new_message_id(),
            user_id=user_id,
            conversation_id=question.conversation_id or rules.new_conversation_id(),
            message=text,
            response=None,
            model=route.model,
            status=AnswerStatus.PENDING,
            usage=None,
            sources=prompt.sources(passages),
            finish_reason=None,
            problem=None,
            created_at=self._clock.now(),
            completed_at=None,
        )
        await self._answers.begin(
            Work(
                answer_id=message.id,
                route=route,
                turns=prompt.turns(history, passages, text),
                sampling=question.sampling,
                caller=user_id or rules.NOBODY,
                created_at=message.created_at,
                message=message if user_id is not None else None,
            )
        )
        return message

    async def get_message(self, user_id: str, message_id: str) -> Message:
        message = await self._store.find(user_id, message_id) if rules.is_message_id(message_id) else None
        if message is None:
            raise MessageMissing()
        return message

    async def history(self, user_id: str, part: Slice) -> Page[Message]:
        return await self._store.page(user_id, part)

    async def usage(self, user_id: str, days: int) -> list[UsageOfModel]:
        since = self._clock.now() - timedelta(days=min(max(days, 1), MAXIMUM_DAYS) - 1)
        return await self._store.usage(user_id, rules.day(since))

    async def _history(self, user_id: str | None, conversation_id: str | None) -> list[Turn]:
        """The last turns of a conversation, oldest first, as far as there is room."""
        if conversation_id is None:
            return []
        found = None
        if user_id is not None and rules.is_conversation_id(conversation_id):
            found = await self._store.conversation(user_id, conversation_id, rules.REMEMBERED_MESSAGES)
        if found is None:
            raise ConversationMissing()
        turns: list[Turn] = []
        room = rules.REMEMBERED_CHARACTERS
        for asked, answered in found:
            room -= len(asked.content) + len(answered.content)
            if room < 0:
                break
            turns = [asked, answered, *turns]
        return turns

    async def _search(self, user_id: str | None, file_ids: list[str], text: str) -> list[Passage]:
        if not file_ids:
            return []
        # Nobody has no files: he is told the same as for files of another.
        found = await self._passages.search(user_id or rules.NOBODY, file_ids, text, prompt.PASSAGES)
        return prompt.within_bounds(found)

    async def _forget(self, delivery: Delivery) -> None:
        """What a user has asked and was answered goes with him; how much it was stays counted."""
        await self._store.delete_all(delivery.event.user_id)
