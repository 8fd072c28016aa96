"""Which provider answers for which model, as the settings have it."""

from typing import Any

import pytest

from bedplate import compose
from bedplate.compose.chosen import registry_of
from bedplate.kernel.settings import OperatorError, Settings, load
from bedplate.modules.chat.public import UnknownModel
from bedplate.modules.chat.registry import DOCUMENTED
from tests.fakes.model_server import ModelServer

KEY = "sk-canary-77ab"
MINE = {"name": "mine", "base_url": "http://gpu:8000/v1", "models": {"gpt-4": "big", "my-model": "small"}}


def routes(**settings: Any) -> dict[str, tuple[str, str]]:
    registry = registry_of(Settings(_env_file=None, **settings))
    found = {model.id: registry.route(model.id) for model in registry.models()}
    return {model: (route.provider.name, route.upstream) for model, route in found.items()}


def test_without_settings_the_documented_models_are_offline() -> None:
    assert routes() == {model: ("offline", model) for model in DOCUMENTED}


def test_a_key_has_openais_models_answered_by_openai() -> None:
    found = routes(openai_api_key=KEY)
    assert found["gpt-4"] == ("openai", "gpt-4") and found["gpt-3.5-turbo"] == ("openai", "gpt-3.5-turbo")
    assert found["llama2"] == ("offline", "llama2")


def test_openai_model_answers_for_gpt_4_and_under_its_own_name() -> None:
    found = routes(openai_api_key=KEY, openai_model="gpt-4.1")
    assert found["gpt-4"] == found["gpt-4.1"] == ("openai", "gpt-4.1")
    assert found["gpt-3.5-turbo"] == ("openai", "gpt-3.5-turbo")


def test_a_server_of_ones_own_needs_no_key_and_has_none_of_openais_models() -> None:
    found = routes(openai_base_url="http://127.0.0.1:1234/v1", openai_model="qwen")
    assert found["gpt-4"] == found["gpt-3.5-turbo"] == found["qwen"] == ("openai", "qwen")


def test_ollama_answers_for_the_local_models() -> None:
    found = routes(ollama_base_url="http://ollama:11434", ollama_model="llama3.2")
    assert found["llama2"] == found["llama3.2"] == ("ollama", "llama3.2")
    assert found["mistral"] == ("ollama", "mistral") and found["gpt-4"] == ("offline", "gpt-4")


def test_more_providers_come_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = routes(openai_api_key=KEY, chat_providers=[MINE])
    assert found["gpt-4"] == ("mine", "big") and found["my-model"] == ("mine", "small")
    assert found["gpt-3.5-turbo"] == ("openai", "gpt-3.5-turbo")


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        '{"name": "mine"}',
        '[{"name": "mine", "base_url": "ftp://x/", "models": {"a": "b"}}]',
        '[{"name": "Mine!", "base_url": "http://x/v1", "models": {"a": "b"}}]',
        '[{"name": "mine", "base_url": "http://x/v1", "models": {}}]',
        '[{"name": "mine", "base_url": "http://x/v1", "models": {"a": "b"}, "api-key": "sk-canary-77ab"}]',
    ],
)
def test_a_mistake_in_the_providers_is_one_line_without_their_keys(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("BEDPLATE_CHAT_PROVIDERS", text)
    with pytest.raises(OperatorError) as mistake:
        load()
    assert str(mistake.value).startswith("BEDPLATE_CHAT_PROVIDERS") and KEY not in str(mistake.value)


@pytest.mark.parametrize("name", ["openai", "offline"])
def test_two_providers_of_one_name_are_a_mistake(name: str) -> None:
    settings = Settings(_env_file=None, openai_api_key=KEY, chat_providers=[{**MINE, "name": name}])
    with pytest.raises(OperatorError, match="a name of its own"):
        compose.prepare(settings, migrate=False)


def test_an_unknown_model_is_nobodys() -> None:
    with pytest.raises(UnknownModel):
        registry_of(Settings(_env_file=None)).route("claude-3")


def test_keys_are_masked() -> None:
    settings = Settings(_env_file=None, openai_api_key=KEY, chat_providers=[{**MINE, "api_key": KEY}])
    assert KEY not in repr(settings)


async def test_whether_a_provider_answers_can_be_asked() -> None:
    async with ModelServer() as server:
        registry = registry_of(Settings(_env_file=None, openai_base_url=server.base_url))
        await registry.providers[0].ping()
        await registry.close()
    registry = registry_of(Settings(_env_file=None, openai_base_url=server.base_url))
    with pytest.raises(Exception, match="Service unavailable"):
        await registry.providers[0].ping()
    await registry.close()
