"""What an account tells of itself beside what it signs in with: names, phone, profile. Checked, and put together."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import date
from typing import Any

from bedplate.kernel.errors import InvalidField
from bedplate.modules.identity import rules
from bedplate.modules.identity.public import EMAIL_NOTIFICATIONS, PUSH_NOTIFICATIONS, Details, Profile

# Characters at most.
LENGTHS: Mapping[str, int] = {
    "avatar_url": 500,
    "bio": 1000,
    "date_of_birth": 10,
    "gender": 30,
    "country": 100,
    "city": 100,
    "address": 300,
    "postal_code": 20,
}
SEVERAL_LINES = {"bio", "address"}
ALL_ON: Mapping[str, bool] = {EMAIL_NOTIFICATIONS: True, PUSH_NOTIFICATIONS: True}

assert [*LENGTHS, "preferences"] == [field.name for field in fields(Profile)]


def columns(details: Details) -> dict[str, Any]:
    """The columns that are given, by name."""
    given: dict[str, Any] = {}
    for field in ("first_name", "last_name"):
        text = getattr(details, field)
        if text is not None:
            given[field] = rules.name(text, field, rules.NAME_PART)
    if details.phone is not None:
        given["phone"] = rules.phone(details.phone)
    return given


def given_of(profile: Profile | None, today: date) -> dict[str, Any]:
    """The parts of a profile that are given, by name."""
    given: dict[str, Any] = {}
    for field, longest in LENGTHS.items():
        text = getattr(profile, field, None)
        if text is not None:
            given[field] = rules.profile_text(text, field, longest, lines=field in SEVERAL_LINES)
    if url := given.get("avatar_url"):
        rules.web_address(url, "profile.avatar_url")
    if born := given.get("date_of_birth"):
        given["date_of_birth"] = rules.date_of_birth(born, today)
    if profile is not None and profile.preferences:
        if unknown := sorted(profile.preferences.keys() - ALL_ON.keys()):
            raise InvalidField(field="profile.preferences", reason=f"There is no preference {unknown[0][:40]!r}")
        given["preferences"] = dict(profile.preferences)
    return given


def merged(stored: Mapping[str, Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """A stored profile with what is given in place of what was; an emptied text is kept as nothing."""
    before = stored or {}
    profile = {**before, **given}
    if "preferences" in given:
        profile["preferences"] = {**before.get("preferences", {}), **given["preferences"]}
    return {name: value for name, value in profile.items() if value != ""}


def profile_of(stored: Mapping[str, Any] | None) -> Profile:
    """A stored profile as a value, with every preference."""
    if not stored:
        return Profile(preferences=dict(ALL_ON))
    texts = {name: stored.get(name) for name in LENGTHS}
    return Profile(**texts, preferences={**ALL_ON, **stored.get("preferences", {})})
