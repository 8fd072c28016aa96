"""Which models can be asked for, and who answers for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bedplate.modules.chat.provider import Provider
from bedplate.modules.chat.public import Model, UnknownModel

# Those of the document: somebody answers for them always.
DOCUMENTED = ("gpt-4", "gpt-3.5-turbo", "llama2", "codellama", "mistral")


@dataclass(frozen=True, slots=True)
class Route:
    """`model`: as it is asked for. `upstream`: what the provider calls it."""

    model: str
    upstream: str
    provider: Provider


class Registry:
    """`offered`: providers with the models that each answers for, by the names that they are asked for with; the first
    one that offers a model has it. `fallback` answers for the rest of the documented ones."""

    def __init__(self, offered: Sequence[tuple[Provider, Mapping[str, str]]], fallback: Provider) -> None:
        self.providers = [*(provider for provider, _ in offered), fallback]
        self._routes: dict[str, Route] = {}
        for provider, models in offered:
            for model, upstream in models.items():
                self._routes.setdefault(model, Route(model, upstream, provider))
        for model in DOCUMENTED:
            self._routes.setdefault(model, Route(model, model, fallback))

    def route(self, model: str) -> Route:
        """Raises UnknownModel."""
        found = self._routes.get(model)
        if found is None:
            raise UnknownModel()
        return found

    def models(self) -> list[Model]:
        """By id."""
        return [Model(model, route.provider.name) for model, route in sorted(self._routes.items())]

    async def close(self) -> None:
        for provider in self.providers:
            await provider.close()
