"""Completions: the implementation of the Completions facade."""

from bedplate.kernel.clock import Clock
from bedplate.modules.chat import rules
from bedplate.modules.chat.answers import Answers, Work
from bedplate.modules.chat.public import Begun, Completions, Model, Sampling, Turn
from bedplate.modules.chat.registry import Registry


class CompletionsService(Completions):
    def __init__(self, registry: Registry, answers: Answers, clock: Clock) -> None:
        self._registry = registry
        self._answers = answers
        self._clock = clock

    async def begin(self, caller_id: str, turns: list[Turn], model: str, sampling: Sampling) -> Begun:
        rules.check_turns(turns)
        rules.check_sampling(sampling)
        route = self._registry.route(model)
        begun = Begun(rules.new_completion_id(), route.model, self._clock.now())
        await self._answers.begin(Work(begun.id, route, turns, sampling, caller_id, begun.created_at))
        return begun

    async def stop(self, answer_id: str) -> None:
        self._answers.interrupt(answer_id)

    async def list_models(self) -> list[Model]:
        return self._registry.models()
