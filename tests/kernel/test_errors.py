"""Every problem of the product in the words of every system."""

import json
import string
from datetime import datetime
from typing import Any

import pytest

from bedplate import compose
from bedplate.kernel.clock import Clock
from bedplate.kernel.errors import STATUSES, Kind, Problem
from bedplate.kernel.http import System
from bedplate.kernel.settings import Settings

# What a problem's message or a system's words may name.
DETAILS: dict[str, Any] = {
    "field": "email",
    "reason": "Reason with {braces} and 100% signs",
    "limit": "5 per 15 minutes",
    "quota": 1_073_741_824,
    "seconds": 600,
    "retry_after": 42,
    "notice": "Back at {noon}",
    "user_id": "0190b5c8-0000-7000-8000-000000000000",
}
SYSTEMS = compose.blueprint(Settings(_env_file=None), Clock())
PROBLEMS = [each for each in Problem.known.values() if each.__module__.startswith("bedplate.")]
COMMERCE_CODES = {
    *("USER_001", "USER_002", "USER_003", "USER_004", "ORDER_001", "ORDER_002", "ORDER_003", "ORDER_004"),
    *("PAY_001", "PAY_003", "PAY_004", "VALIDATION_ERROR", "BAD_REQUEST", "UNAUTHORIZED", "FORBIDDEN", "NOT_FOUND"),
    *("CONFLICT", "GONE", "PAYLOAD_TOO_LARGE", "TOO_MANY_REQUESTS", "INTERNAL_ERROR", "SERVICE_UNAVAILABLE"),
    *("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_KEY_IN_WORK"),
}
PANTSTACK_CODES = {"AUTH_001", "AUTH_002", "AUTH_003", "VAL_001", "VAL_002", "RES_001", "RES_002", "SYS_001", "SYS_002"}


def named_by(problem: type[Problem]) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(problem.message) if name}


def said(problem: type[Problem]) -> Problem:
    details = {name: DETAILS[name] for name in named_by(problem)}
    if problem.kind is Kind.TOO_MANY:
        details |= {name: DETAILS[name] for name in ("limit", "retry_after")}
    if problem.__name__ == "InvalidField":
        details["field"] = DETAILS["field"]
    return problem(**details)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda each: each.__name__)
def test_every_problem_has_a_kind_and_a_whole_message(problem: type[Problem]) -> None:
    assert problem.kind in STATUSES
    assert problem.message, "it must say what happened"
    assert named_by(problem) <= DETAILS.keys(), "a new detail: say an example of it here"
    words = str(said(problem))
    for name in named_by(problem):
        assert str(DETAILS[name]) in words
    assert words[0].isupper()
    assert words == words.strip()
    assert not words.endswith(".")


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda each: each.name)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda each: each.__name__)
def test_every_problem_has_the_documented_shape_in_every_system(system: System, problem: type[Problem]) -> None:
    answer = system.envelope.of_problem(said(problem), "req-1")
    assert 400 <= answer.status_code < 600
    assert (answer.status_code >= 500) == (problem.kind in (Kind.UNAVAILABLE, Kind.FAILED))
    assert answer.headers["content-type"] == "application/json"
    body = json.loads(answer.body)
    SHAPES[system.name](body)
    message = body["error"] if system.name == "cobalt" else body["message"]
    if system.name == "pynode":
        # The document's messages are fixed: what they do not say is in the details, but how much was allowed.
        message = json.dumps(body, ensure_ascii=False)
    for name in named_by(problem) - ({"limit"} if system.name == "pynode" and problem.kind is Kind.TOO_MANY else set()):
        assert str(DETAILS[name]) in message, "details are filled in, once"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda each: each.name)
def test_who_must_wait_is_told_how_long_and_who_must_sign_in_is_told_how(system: System) -> None:
    for problem in PROBLEMS:
        headers = system.envelope.of_problem(said(problem), "").headers
        assert ("retry-after" in headers) == (problem.kind in (Kind.TOO_MANY, Kind.UNAVAILABLE)), problem.__name__
        assert ("www-authenticate" in headers) == (problem.kind is Kind.UNAUTHENTICATED), problem.__name__
        if "retry_after" in said(problem).details:
            assert headers["retry-after"] == "42"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda each: each.name)
def test_what_nobody_expected_tells_nothing_about_itself(system: System) -> None:
    answer = system.envelope.defect("req-1")
    assert answer.status_code == 500
    body = json.loads(answer.body)
    SHAPES[system.name](body)
    assert "traceback" not in answer.body.decode().lower()


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda each: each.name)
def test_every_status_of_the_framework_has_words(system: System) -> None:
    for status in (400, 404, 405, 413, 415, 422, 500, 503):
        assert system.envelope.message(status)


def test_two_problems_cannot_have_one_name() -> None:
    with pytest.raises(AssertionError, match="two problems are called TooMany"):
        type("TooMany", (Problem,), {"kind": Kind.TOO_MANY})


def cobalt_shape(body: dict[str, Any]) -> None:
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    assert body["error"]


def pantstack_shape(body: dict[str, Any]) -> None:
    assert set(body) == {"error", "message", "details", "request_id", "timestamp"}
    assert body["error"] in PANTSTACK_CODES or body["error"].startswith("HTTP_4")
    assert body["message"]
    assert body["request_id"] == "req-1"
    assert body["timestamp"].endswith("Z")
    assert datetime.fromisoformat(body["timestamp"])
    details = body["details"]
    assert details is None or isinstance(details, dict)
    for field in (details or {}).get("fields", []):
        assert set(field) == {"field", "reason"}


def commerce_shape(body: dict[str, Any]) -> None:
    assert list(body) == ["code", "message", "error", "details"]
    assert body["code"] in COMMERCE_CODES
    assert body["message"]
    assert body["error"] == body["message"]
    details = body["details"]
    assert details is None or isinstance(details, dict)
    for field in (details or {}).get("fields", []):
        assert set(field) == {"field", "reason"}


def pynode_shape(body: dict[str, Any]) -> None:
    assert {"error", "message", "code"} <= set(body) <= {"error", "message", "code", "details", "retry_after"}
    assert body["code"] == body["code"].upper()
    assert body["error"] and body["message"]
    assert set(body.get("details", {"field", "reason"})) == {"field", "reason"}


COMMERCE = ("user-service", "order-service", "payment-service", "notification-worker")
SHAPES = {
    "cobalt": cobalt_shape,
    "pantstack": pantstack_shape,
    "pynode": pynode_shape,
    **dict.fromkeys(COMMERCE, commerce_shape),
}
