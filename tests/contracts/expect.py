"""Compares an answer with what a contract line says of it, and tells every difference."""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from http.cookies import SimpleCookie
from typing import Any
from uuid import UUID

from httpx2 import Response


def _is(kind: type, pattern: str = ".*") -> Callable[[Any], bool]:
    return lambda value: type(value) is kind and re.fullmatch(pattern, str(value), re.DOTALL) is not None


def _uuid(value: Any) -> bool:
    return isinstance(value, str) and str(UUID(value)) == value


def _timestamp(value: Any) -> bool:
    return isinstance(value, str) and value.endswith("Z") and datetime.fromisoformat(value).tzinfo is not None


WORDS: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "string": _is(str, ".+"),
    "empty": _is(str, ""),
    "integer": _is(int, r"\d+"),
    "boolean": _is(bool),
    "object": _is(dict),
    "uuid": _uuid,
    "timestamp": _timestamp,
    "user id": _is(str, r"usr_\w+"),
    "order id": _is(str, r"order-[0-9a-f-]{36}"),
    "payment id": _is(str, r"pay-[0-9a-f-]{36}"),
    "transaction id": _is(str, r"txn-[0-9a-f-]{36}"),
    "chat id": _is(str, r"chat-[0-9a-f-]{36}"),
    "file id": _is(str, r"file-[0-9a-f-]{36}"),
    "completion id": _is(str, r"chatcmpl-[\w-]+"),
    "digits": _is(str, r"\d+"),
    "amount": lambda value: type(value) in (int, float) and value >= 0 and round(value, 2) == value,
    "email": _is(str, r"[^@\s]+@[^@\s]+"),
    "role": _is(str, "User|Admin"),
    "token": _is(str, r"[\w.-]{20,}"),
    "jwt": _is(str, r"[\w-]+\.[\w-]+\.[\w-]+"),
    "request id": _is(str, r"[!-~]{1,128}"),
    "seconds": _is(str, r"[1-9]\d*"),
    "megabytes": _is(str, r"\d+MB"),
    "percent": _is(str, r"\d+%"),
    "ratio": lambda value: type(value) in (int, float) and 0 <= value <= 1,
}


def differences(expected: Any, actual: Any, shapes: Mapping[str, Any], at: str) -> Iterator[str]:
    """One text for each place where the answer is not as expected."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        yield from (f"{at}: no {key}" for key in expected.keys() - actual.keys())
        yield from (f"{at}: {key} is not in the contract" for key in actual.keys() - expected.keys())
        for key in expected.keys() & actual.keys():
            yield from differences(expected[key], actual[key], shapes, f"{at}.{key}")
    elif isinstance(expected, str) and (word := re.fullmatch("<(.+)>", expected)):
        yield from _of_type(word[1], actual, shapes, at)
    elif isinstance(expected, str) and len(expected) > 2 and expected[0] == expected[-1] == "/":
        if not isinstance(actual, str) or not re.fullmatch(expected[1:-1], actual):
            yield f"{at}: {actual!r} does not match {expected}"
    elif expected != actual or type(expected) is not type(actual):
        yield f"{at}: {actual!r}, not {expected!r}"


def _of_type(word: str, actual: Any, shapes: Mapping[str, Any], at: str) -> Iterator[str]:
    if word.endswith(" or null"):
        if actual is not None:
            yield from _of_type(word.removesuffix(" or null"), actual, shapes, at)
    elif word.startswith("list with "):
        if word.removeprefix("list with ") not in actual:
            yield f"{at}: {actual!r} is not a {word}"
    elif word.startswith("list of "):
        if not isinstance(actual, list):
            yield f"{at}: {actual!r} is no list"
        else:
            for index, item in enumerate(actual):
                yield from _of_type(word.removeprefix("list of "), item, shapes, f"{at}.{index}")
    elif word in shapes:
        yield from differences(shapes[word], actual, shapes, at)
    elif not _holds(word, actual):
        yield f"{at}: {actual!r} is no {word}"


def _holds(word: str, actual: Any) -> bool:
    try:
        return WORDS[word](actual)
    except ValueError:
        return False


def at(path: str, value: Any) -> Any:
    """The value at a path: `users.*.username` is the list of all usernames, `items.#` a length."""
    first, _, rest = path.partition(".")
    if first == "#":
        return len(value)
    if first == "*":
        return [at(rest, item) for item in value]
    return at(rest, value[first]) if rest else value[first]


def cookies(response: Response) -> dict[str, dict[str, Any]]:
    """The cookies that the answer sets, with the attributes that matter."""
    found = {}
    for header in response.headers.get_list("set-cookie"):
        for name, cookie in SimpleCookie(header).items():
            flags = {flag: bool(cookie[flag]) for flag in ("httponly", "secure")}
            plain = {key: cookie[key].lower() for key in ("max-age", "path", "samesite")}
            found[name] = {"value": cookie.value, **plain, **flags}
    return found
