"""Names of files, made safe: whatever a client says, the name is one that any system can have beside others."""

import re
import unicodedata

MAXIMUM_BYTES = 255
NAMELESS = "file"
# Of what a name may not have on some system, what is not a control character.
_FORBIDDEN = re.compile(r'[<>:"|?*]')
_EDGES = re.compile(r"\A[\s.]+|[\s.]+\Z")
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\.|\Z)", re.IGNORECASE)
# Control and format characters (also those that turn the direction of writing), halves of characters, line ends.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def safe_name(name: str) -> str:
    """The last part of a path, composed (NFC), without what cannot be seen, at most 255 bytes with its ending kept."""
    # Cut before it is looked at: what is longer is no name, and composing takes its time.
    name = re.split(r"[/\\]", name[-4096:])[-1]
    name = "".join(each for each in name if unicodedata.category(each) not in _INVISIBLE)
    name = _EDGES.sub("", _FORBIDDEN.sub("_", unicodedata.normalize("NFC", name))) or NAMELESS
    if _RESERVED.match(name):
        name = f"_{name}"
    return _cut(name)


def _cut(name: str) -> str:
    if len(name.encode()) <= MAXIMUM_BYTES:
        return name
    stem, dot, ending = name.rpartition(".")
    if not stem or len(ending.encode()) > 32:
        stem, dot, ending = name, "", ""
    tail = dot + ending
    kept = stem.encode()[: MAXIMUM_BYTES - len(tail.encode())].decode(errors="ignore").rstrip(" .")
    return kept + tail
