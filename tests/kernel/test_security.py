"""Passwords, tokens and the secret."""

import asyncio
import base64
import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type
from hypothesis import given
from hypothesis import strategies as st

from bedplate.kernel.errors import Unavailable
from bedplate.kernel.security import (
    MAXIMUM_TOKEN,
    MAXIMUM_WAITING,
    Passwords,
    Tokens,
    digest,
    random_token,
    signing_secret,
)
from bedplate.kernel.settings import OperatorError, Settings

CLAIMS = {"type": "access", "aud": "cobalt", "sub": "u", "jti": "j", "exp": 2_000_000_000}
TOKENS = Tokens("a-secret-of-the-tests-and-of-nobody-else")


@pytest.fixture(scope="module")
def passwords() -> Any:
    made = Passwords(2)
    yield made
    made.close()


async def test_passwords_are_hashed_by_argon2id_with_the_parameters_that_owasp_names(passwords: Passwords) -> None:
    parameters = extract_parameters(await passwords.hash("correct horse"))
    assert parameters.type is Type.ID
    assert (parameters.memory_cost, parameters.time_cost, parameters.parallelism) == (19_456, 2, 1)
    assert parameters.salt_len >= 16


async def test_only_the_password_itself_opens(passwords: Passwords) -> None:
    stored = await passwords.hash("correct horse")
    assert await passwords.verify(stored, "correct horse")
    for wrong in ("Correct horse", "correct horse ", "", "\0", "x" * 10_000, "\ud800"):
        assert not await passwords.verify(stored, wrong)


async def test_each_hash_has_a_salt_of_its_own(passwords: Passwords) -> None:
    assert await passwords.hash("same") != await passwords.hash("same")


async def test_a_password_may_be_typed_on_any_machine(passwords: Passwords) -> None:
    assert await passwords.verify(await passwords.hash("caf\u00e9"), "cafe\u0301")


async def test_without_a_stored_hash_the_answer_is_no(passwords: Passwords) -> None:
    assert not await passwords.verify(None, "anything")
    assert not await passwords.verify("no hash at all", "anything")


async def test_weaker_parameters_are_outdated(passwords: Passwords) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8_192, parallelism=1).hash("correct horse")
    assert passwords.outdated(weak)
    assert await passwords.verify(weak, "correct horse")
    assert not passwords.outdated(await passwords.hash("correct horse"))


async def test_the_loop_goes_on_while_passwords_are_hashed(passwords: Passwords) -> None:
    turns = 0
    hashing = asyncio.gather(*(passwords.hash("correct horse") for _ in range(8)))
    while not hashing.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 8


async def test_who_comes_when_too_many_wait_is_told_to_come_back() -> None:
    passwords = Passwords(1)
    waiting = [asyncio.create_task(passwords.verify("no hash", "x")) for _ in range(MAXIMUM_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await passwords.hash("one too many")
    await asyncio.gather(*waiting)
    assert await passwords.hash("there is room again")
    passwords.close()


def test_a_token_is_read_for_its_use_only() -> None:
    token = TOKENS.sign(CLAIMS)
    found = TOKENS.read(token, type="access", audience="cobalt")
    assert found is not None
    assert found["sub"] == "u"
    assert TOKENS.read(token, type="refresh", audience="cobalt") is None
    assert TOKENS.read(token, type="access", audience="pantstack") is None
    assert Tokens("another-secret-of-thirty-two-characters").read(token, type="access", audience="cobalt") is None


def test_the_same_claims_give_the_same_token() -> None:
    assert TOKENS.sign(CLAIMS) == TOKENS.sign(CLAIMS)


@pytest.mark.parametrize("missing", ["type", "aud", "sub", "jti", "exp"])
def test_a_token_without_one_of_its_claims_is_none(missing: str) -> None:
    claims = {name: value for name, value in CLAIMS.items() if name != missing}
    assert TOKENS.read(TOKENS.sign(claims), type="access", audience="cobalt") is None


@pytest.mark.parametrize(
    "strange",
    [{"exp": "2000000000"}, {"exp": 1.5}, {"sub": 5}, {"jti": None}, {"aud": ["cobalt", "x"]}, {"iss": "another"}],
    ids=lambda each: next(iter(each)),
)
def test_a_token_with_a_strange_claim_is_none(strange: dict[str, Any]) -> None:
    assert TOKENS.read(TOKENS.sign({**CLAIMS, **strange}), type="access", audience="cobalt") is None


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": "JWT"},
        {"alg": "None"},
        {"alg": "RS256", "typ": "JWT"},
        {"alg": "HS512", "typ": "JWT"},
        {"alg": "HS256", "typ": "JWT", "kid": "../../dev/null"},
        {"alg": "HS256", "typ": "JWT", "jku": "http://example.com"},
        {"alg": ["HS256"]},
        {},
        [],
        "HS256",
    ],
)
def test_a_token_with_another_header_is_none(header: Any) -> None:
    signed = TOKENS.sign(CLAIMS)
    payload, signature = signed.split(".")[1:]
    body = encoded({"iss": "bedplate", **CLAIMS})
    for token in (f"{encoded(header)}.{payload}.{signature}", f"{encoded(header)}.{body}."):
        assert TOKENS.read(token, type="access", audience="cobalt") is None


@given(st.text() | st.text("abc.=-_/+", max_size=40))
def test_no_text_makes_the_reader_fail(text: str) -> None:
    assert TOKENS.read(text, type="access", audience="cobalt") is None


@given(position=st.integers(0, 10_000), character=st.sampled_from("ABab09-_.="))
def test_a_token_with_one_character_changed_is_none_or_says_the_same(position: int, character: str) -> None:
    token = TOKENS.sign(CLAIMS)
    position %= len(token)
    changed = token[:position] + character + token[position + 1 :]
    found = TOKENS.read(changed, type="access", audience="cobalt")
    # The last character of base64 carries bits that mean nothing.
    assert found is None or found == TOKENS.read(token, type="access", audience="cobalt")


def test_an_endless_token_is_not_looked_at() -> None:
    assert TOKENS.read(TOKENS.sign({**CLAIMS, "x": "x" * MAXIMUM_TOKEN}), type="access", audience="cobalt") is None


def test_random_tokens_differ_and_are_stored_as_hashes() -> None:
    tokens = {random_token() for _ in range(100)}
    assert len(tokens) == 100
    assert all(len(token) == 64 for token in tokens)
    assert all(token not in digest(token) and len(digest(token)) == 64 for token in tokens)
    assert digest("\ud800"), "whatever a client sends"


def test_the_generated_secret_is_long_kept_and_private(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data=tmp_path / "new" / "folder")
    secret = signing_secret(settings)
    assert len(secret) >= 32
    assert signing_secret(settings) == secret
    file = settings.data / "secret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in settings.data.iterdir()] == ["secret"], "no draft is left"


def test_starting_together_they_agree_on_one_secret(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, data=tmp_path)
    start, found = threading.Barrier(8), []

    def begin() -> None:
        start.wait()
        found.append(signing_secret(settings))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"short", b"\xff\xfe" * 40, b"\0" * 48],
    ids=["empty", "blank", "short", "no text", "lost by the disk"],
)
def test_a_damaged_secret_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(OperatorError) as refused:
        signing_secret(Settings(_env_file=None, data=tmp_path))
    assert str(refused.value).startswith(f"the secret in {tmp_path / 'secret'} is damaged; restore it, or delete")
    assert (tmp_path / "secret").read_bytes() == content, "nobody is signed out by a guess"


def test_a_configured_secret_is_used_and_none_is_written(tmp_path: Path) -> None:
    assert signing_secret(Settings(_env_file=None, data=tmp_path, secret="x" * 40)) == "x" * 40
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_the_operators_mistake() -> None:
    with pytest.raises(OperatorError, match="cannot use the data folder /proc/nothing"):
        signing_secret(Settings(_env_file=None, data=Path("/proc/nothing")))
