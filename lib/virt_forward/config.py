"""Parsing the configuration. Every key is optional; an unknown one is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from virt_forward.errors import VirtForwardError
from virt_forward.metadata import values
from virt_forward.model import MAX_PORT, Proto
from virt_forward.namedtuple import TYPE_CHECKING, NamedTuple
from virt_forward.text import output, plain

if TYPE_CHECKING:
    from typing import Any, Literal

    OnError = Literal["refuse", "warn"]
    Hairpin = bool | Literal["ports"]
    Learn = Literal["derived", "any", "never"]
else:
    OnError = Hairpin = Learn = str

DEFAULT_PATH = "/etc/virt-forward/config.toml"
ON_ERROR: tuple[OnError, ...] = ("refuse", "warn")
LEARN: tuple[Learn, ...] = ("derived", "any", "never")


class ReservedPort(NamedTuple):
    """A port of the host that no guest may have."""

    proto: Proto
    port: int


class Config(NamedTuple):
    """The configuration; the fields are named after the keys."""

    uplinks: tuple[str, ...] = ()
    localhost: bool = False
    hairpin: Hairpin = True
    reserved: tuple[ReservedPort, ...] = (ReservedPort("tcp", 22),)
    on_error: OnError = "refuse"
    learn: Learn = "derived"
    admit: bool = True
    uri: str = "qemu:///system"


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise values.Bad("use true or false")
    return value


def _hairpin(value: object) -> Hairpin:
    if value == "ports":
        return "ports"
    try:
        return _bool(value)
    except values.Bad:
        raise values.Bad('use true, false or "ports"') from None


def _strings(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise values.Bad("use a list of strings, in brackets")
    return value


def _uplinks(value: object) -> tuple[str, ...]:
    return tuple(values.dev(name) for name in _strings(value))


def _read_reserved(value: object) -> tuple[ReservedPort, ...]:
    return tuple(_reserved_port(text) for text in _strings(value))


def _reserved_port(text: str) -> ReservedPort:
    proto, slash, port = text.partition("/")
    try:
        if not slash:
            raise values.Bad
        return ReservedPort(values.proto(proto), values.port(port))
    except values.Bad:
        raise values.Bad(f'use protocol/port with a port from 1 to {MAX_PORT}, as in "tcp/22"') from None


def _on_error(value: object) -> OnError:
    for word in ON_ERROR:
        if value == word:
            return word
    raise values.Bad('use "refuse" or "warn"')


def _learn(value: object) -> Learn:
    for word in LEARN:
        if value == word:
            return word
    raise values.Bad('use "derived", "any" or "never"')


def _uri(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise values.Bad('use a libvirt connection URI, as in "qemu:///system"')
    return value


SECTIONS: dict[str, dict[str, Callable[[object], Any]]] = {
    "forward": {"uplinks": _uplinks, "localhost": _bool, "hairpin": _hairpin},
    "policy": {"reserved": _read_reserved, "on_error": _on_error},
    "addresses": {"learn": _learn},
    "libvirt": {"admit": _bool, "uri": _uri},
}


def parse_config(text: str, path: str = DEFAULT_PATH) -> Config:
    """Return the configuration in ``text``.

    Raises VirtForwardError with every error, each naming ``path``, the line and the key.
    """
    import tomllib

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError
        told = f"{path}: {output(str(error))}"
        raise VirtForwardError(told, "the format is TOML, https://toml.io") from None
    found: dict[str, Any] = {}
    errors = list(_read(document, found, text, path))
    if errors:
        raise VirtForwardError(errors)
    return Config(**found)


def _read(document: dict[str, Any], found: dict[str, Any], text: str, path: str) -> Iterator[str]:
    for section, table in document.items():
        where = f"{path}:{_line(text, section)}"
        if section not in SECTIONS:
            yield f"{where}: unknown section [{plain(section)}]; known: {', '.join(SECTIONS)}"
        elif not isinstance(table, dict):
            yield f"{where}: {section} is a section; write [{section}] and its keys below"
        else:
            yield from _read_section(section, table, found, text, path)


def _read_section(
    section: str, table: dict[str, Any], found: dict[str, Any], text: str, path: str
) -> Iterator[str]:
    keys = SECTIONS[section]
    for key, value in table.items():
        where = f"{path}:{_line(text, section, key)}: [{section}] {plain(key)}"
        if key not in keys:
            yield f"{where}: unknown key; known: {', '.join(keys)}"
            continue
        try:
            found[key] = keys[key](value)
        except values.Bad as error:
            yield f"{where}: {error}"


def _line(text: str, section: str, key: str = "") -> int:
    """Return the line number of a section, or of one of its keys.

    tomllib keeps no positions. A key that is written in an unusual way (quoted, dotted)
    is reported at its section's line, or at line 1.
    """
    at = 1
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)
        current = header[1] if header else current
        if header and current == section:
            at = number
        if (current == section and key and re.match(rf"\s*{re.escape(key)}\s*=", line)) or (
            not current and re.match(rf"\s*{re.escape(section)}\s*[=.]", line)
        ):
            return number
    return at
