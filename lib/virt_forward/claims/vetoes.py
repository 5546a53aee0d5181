"""The host's own reasons against a host port, in words, and what can be done about any such reason."""

from virt_forward import text
from virt_forward.config import DEFAULT_PATH
from virt_forward.model import Address, Proto

_RESERVED = "is reserved by the configuration ([policy] reserved)"
_LISTENS = ", which listens on "
_SS = {"tcp": "ss -Hlntp", "udp": "ss -Hlnup", "sctp": "ss -HlnSp"}


def reserved(proto: Proto, port: int) -> str:
    """Return that the configuration reserves a port."""
    return f"host port {proto}/{port} {_RESERVED}"


def listening(proto: Proto, port: int, address: Address, program: str) -> str:
    """Return that a program of the host listens on a port; ``program`` is empty where it is not known."""
    by = f"{text.word(program)} on the host" if program else "the host"
    return f"host port {proto}/{port} is taken by {by}{_LISTENS}{address}"


def remedy(reason: str) -> str:
    """Return what can be done about the reason of a conflict, and what shows more of it.

    A record keeps only the words of a reason. The name of a guest comes last, and is quoted where it
    has a blank, so it is not taken for the ending of another reason.
    """
    if reason.startswith("address "):
        return "give one of the two guests another address; virt-forward list shows whose it is"
    port = (*reason.split(), "", "", "")[2]
    if reason.endswith(_RESERVED):
        return f"give the forward another port, or take {port} out of [policy] reserved in {DEFAULT_PATH}"
    if _LISTENS in reason and not reason.endswith('"'):
        proto, _, number = port.partition("/")
        show = f"{_SS.get(proto, 'ss -Hlntup')} sport = :{number}"
        return f"stop that program ({show} shows it), or give the forward another port"
    return "give one of the two guests another port; virt-forward list shows who has which"
