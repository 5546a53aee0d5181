"""config.toml: every key, and every way to get it wrong."""

from __future__ import annotations

import pytest

from virt_forward.config import SECTIONS, Config, ReservedPort, parse_config
from virt_forward.errors import VirtForwardError


def test_nothing_is_the_defaults() -> None:
    assert parse_config("") == parse_config("[forward]\n[policy]\n[addresses]\n[libvirt]\n") == Config()
    assert Config() == Config(
        (), False, True, (ReservedPort("tcp", 22),), "refuse", "derived", True, "qemu:///system"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[forward]\nuplinks = ["enp1s0", "wlan0"]', Config(uplinks=("enp1s0", "wlan0"))),
        ("[forward]\nuplinks = []", Config()),
        ("[forward]\nlocalhost = true", Config(localhost=True)),
        ("[forward]\nhairpin = false", Config(hairpin=False)),
        ('[forward]\nhairpin = "ports"', Config(hairpin="ports")),
        (
            '[policy]\nreserved = ["tcp/22", "udp/53", "sctp/9"]',
            Config(reserved=(ReservedPort("tcp", 22), ReservedPort("udp", 53), ReservedPort("sctp", 9))),
        ),
        ("[policy]\nreserved = []", Config(reserved=())),
        ('[policy]\non_error = "warn"', Config(on_error="warn")),
        ('[addresses]\nlearn = "any"', Config(learn="any")),
        ('[addresses]\nlearn = "never"', Config(learn="never")),
        ("[libvirt]\nadmit = false", Config(admit=False)),
        ('[libvirt]\nuri = "qemu+ssh://host/system"', Config(uri="qemu+ssh://host/system")),
        ("forward.localhost = true", Config(localhost=True)),
        ("forward = { localhost = true, hairpin = false }", Config(localhost=True, hairpin=False)),
    ],
)
def test_every_key(text: str, expected: Config) -> None:
    assert parse_config(text) == expected


def test_every_key_has_a_default_of_its_name() -> None:
    assert sorted(key for keys in SECTIONS.values() for key in keys) == sorted(Config._fields)


TRUE_FALSE = "use true or false"
STRINGS = "use a list of strings, in brackets"
DEV = "use the name of a network interface, as in enp1s0"
RESERVED = 'use protocol/port with a port from 1 to 65535, as in "tcp/22"'
LEARN = 'use "derived", "any" or "never"'
URI = 'use a libvirt connection URI, as in "qemu:///system"'


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        *(("forward.localhost", value, TRUE_FALSE) for value in ("1", '"yes"', "[]", "0.5")),
        *(("forward.hairpin", value, 'use true, false or "ports"') for value in ("0", '"no"', '["ports"]')),
        ("libvirt.admit", '"false"', TRUE_FALSE),
        *(("addresses.learn", value, LEARN) for value in ('"all"', "true", '["any"]', '""')),
        *(("forward.uplinks", value, STRINGS) for value in ('"enp1s0"', "[1]", "true", '[["enp1s0"]]')),
        *(("forward.uplinks", f'["{value}"]', DEV) for value in ("", "a b", "x" * 16, "..", "enp*", "a/b")),
        ("policy.reserved", '"tcp/22"', STRINGS),
        ("policy.reserved", "[22]", STRINGS),
        *(
            ("policy.reserved", f'["{value}"]', RESERVED)
            for value in (
                "22",
                "tcp/0",
                "tcp/65536",
                "tcp/ssh",
                "icmp/1",
                "22/tcp",
                "tcp/",
                "/",
                "tcp/22-23",
                "",
            )
        ),
        *(
            ("policy.on_error", value, 'use "refuse" or "warn"')
            for value in ('"ignore"', "true", '"Refuse"', "[]")
        ),
        *(("libvirt.uri", value, URI) for value in ('""', "1", "[]")),
    ],
)
def test_wrong_value_says_where_and_what_is_right(key: str, value: str, said: str) -> None:
    section, _, name = key.partition(".")
    with pytest.raises(VirtForwardError) as caught:
        parse_config(f"# a comment\n\n[{section}]\n# another\n{name} = {value}\n", "/x.toml")
    assert caught.value.messages == (f"/x.toml:5: [{section}] {name}: {said}",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[forward]\n\nuplink = []", "3: [forward] uplink: unknown key; known: uplinks, localhost, hairpin"),
        ("[policy]\nlocalhost = true", "2: [policy] localhost: unknown key; known: reserved, on_error"),
        (
            "[libvirt]\n[forwards]",
            "2: unknown section [forwards]; known: forward, policy, addresses, libvirt",
        ),
        ("\nlocalhost = true", "2: unknown section [localhost]"),
        ("\nforward = 1", "2: forward is a section; write [forward] and its keys below"),
        ("[[forward]]\nlocalhost = true", "forward is a section; write [forward]"),
        ("[forward]\n[forward.more]\nx = 1", "[forward] more: unknown key"),
        # in other spellings the line of the section has to do
        ('\n[forward]\n"localhost" = 1', "2: [forward] localhost: use true or false"),
        ("\nforward.localhost = 1", "2: [forward] localhost: use true or false"),
        ("\n [ forward ] # here\nlocalhost = 1", "3: [forward] localhost: use true or false"),
    ],
)
def test_unknown_key_is_an_error_with_its_line(text: str, said: str) -> None:
    with pytest.raises(VirtForwardError) as caught:
        parse_config(text, "/x.toml")
    (message,) = caught.value.messages
    assert message.startswith("/x.toml:")
    assert said in message


def test_all_errors_are_told_with_the_default_path() -> None:
    with pytest.raises(VirtForwardError) as caught:
        parse_config('[forward]\nuplinks = ["a b"]\nhairpin = 1\n[policy]\nx = 1\n[y]\n')
    path = "/etc/virt-forward/config.toml"
    assert [message.partition(": ")[0] for message in caught.value.messages] == [
        f"{path}:2",
        f"{path}:3",
        f"{path}:5",
        f"{path}:6",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,  # tomllib reads lists and tables one inside another by recursion
        "a = " + '{"" = ' * 2000,
        "a = " + "9" * 5000,  # more digits than int() takes
    ],
    ids=["lists", "tables", "digits"],
)
def test_toml_beyond_what_python_reads(text: str) -> None:
    with pytest.raises(VirtForwardError, match=r"^/x.toml: "):
        parse_config(text, "/x.toml")


@pytest.mark.parametrize("text", ["[forward", "localhost", "[forward]\nhairpin = yes", "a = 1\na = 2", "\0"])
def test_invalid_toml_is_refused(text: str) -> None:
    with pytest.raises(VirtForwardError, match=r"^/x.toml: .*(line|end of document)") as caught:
        parse_config(text, "/x.toml")
    assert "TOML" in caught.value.hint
