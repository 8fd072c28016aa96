"""How strong secrets have to be: the one that signs tokens, and the hashes of passwords."""

import re

MINIMUM_SECRET = 32
LEAST_SECRET = 16  # outside production
# The least that OWASP recommends for Argon2id with one lane.
HASH_MEMORY_KIB = 19_456
HASH_PASSES = 2
# What stands in documents, tutorials and example files, without its separators, in lower case.
EXAMPLE_SECRETS = (
    "yoursecret",
    "mysecret",
    "supersecret",
    "stringsecret",
    "defaultsecret",
    "devsecret",
    "password",
    "changeme",
    "changethis",
    "replaceme",
    "replacethis",
    "insecure",
    "example",
    "placeholder",
    "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
)


def guessable(secret: str) -> bool:
    """Too short, of few characters, a short text again and again, or like one that is printed somewhere."""
    plain = re.sub(r"[\W_]", "", secret.lower())
    known = plain.startswith("secret") or any(example in plain for example in EXAMPLE_SECRETS)
    return len(secret) < MINIMUM_SECRET or len(set(secret)) < 8 or _repeats(secret) or known


def _repeats(secret: str) -> bool:
    return any(secret.startswith(secret[period:]) for period in range(1, MINIMUM_SECRET // 2 + 1))
