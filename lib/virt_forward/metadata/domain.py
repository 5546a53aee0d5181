"""A libvirt domain XML to a Domain: its name, NICs and what it declares to us."""

from __future__ import annotations

from collections.abc import Iterator

from virt_forward import text
from virt_forward.errors import VirtForwardError
from virt_forward.metadata import forwards, plain, values
from virt_forward.model import Declaration, Domain, Nic
from virt_forward.namedtuple import TYPE_CHECKING

if TYPE_CHECKING:
    from virt_forward.metadata.forwards import Element


class MetadataError(VirtForwardError):
    """The domain is known, but its ``<forwards>`` are wrong; ``domain`` says which one it is."""

    def __init__(self, domain: Domain, messages: tuple[str, ...]) -> None:
        name = text.domain_argument(domain.name, domain.uuid)
        super().__init__(messages, f"correct it with: virsh edit {name}")
        self.domain = domain

    @property
    def reasons(self) -> tuple[str, ...]:
        """The messages where it is said already which guest they are about."""
        named = f"guest {text.quote(self.domain.name)}: "
        return tuple(message.removeprefix(named) for message in self.messages)


def parse_domain(data: bytes) -> Domain:
    """Return the domain of an XML as libvirt gives it to a hook (docs/formatdomain.rst).

    Raises MetadataError with every error of our part of it, VirtForwardError where the
    document is no domain XML at all.
    """
    from virt_forward.metadata import xml

    return _domain(xml.parse(data, "domain XML"))


def parse_known(data: bytes) -> Domain:
    """Return the same as :func:`parse_domain`, and quickly where the document is plain and nothing is wrong.

    For a guest that has been started, so that ``parse_domain`` has read its XML before.
    """
    root = plain.parse(data)
    if root is None:
        return parse_domain(data)
    try:
        return _domain(root)
    except VirtForwardError:
        return parse_domain(data)  # which knows the lines


def _domain(root: Element) -> Domain:
    if root.tag == "domstatus":
        root = _only(root, "domain")
    if root.tag != "domain":
        found = text.plain(str(root.tag))
        raise VirtForwardError(f"domain XML: the root element is <{found}>; it should be <domain>")
    name = _text(root, "name")
    nics = (
        _nic(element) for devices in _children(root, "devices") for element in _children(devices, "interface")
    )
    domain = Domain(name, _uuid(root), tuple(nics))
    declaration, errors = _declared(root)
    if errors:
        raise MetadataError(domain, tuple(f"guest {text.quote(name)}: {error}" for error in errors))
    return domain._replace(declaration=declaration)


def _children(element: Element, tag: str) -> Iterator[Element]:
    return (child for child in element if child.tag == tag)


def _first(element: Element, tag: str) -> Element | None:
    return next(_children(element, tag), None)


def _only(root: Element, tag: str) -> Element:
    child = _first(root, tag)
    if child is None:
        raise VirtForwardError(f"<{text.plain(str(root.tag))}>: has no <{tag}> inside")
    return child


def _text(element: Element, tag: str) -> str:
    child = _first(element, tag)
    return "" if child is None else (child.text or "").strip()


def _uuid(root: Element) -> str:
    found = _text(root, "uuid").lower()
    try:
        return values.uuid(found)
    except values.Bad:
        raise VirtForwardError(f"domain XML: <uuid> is {text.quote(found)}, which is no UUID") from None


def _nic(element: Element) -> Nic:
    mac, source = _first(element, "mac"), _first(element, "source")
    kind = element.get("type", "")
    name = "" if source is None else source.get("network" if kind == "network" else "bridge", "")
    return Nic("" if mac is None else mac.get("address", "").lower(), kind, name)


def _declared(root: Element) -> tuple[Declaration | None, tuple[str, ...]]:
    ours = [
        element
        for metadata in _children(root, "metadata")
        for element in metadata
        if str(element.tag).startswith(f"{{{forwards.NAMESPACE}}}")
    ]
    errors = [
        f"line {element.sourceline}: <{forwards.display(element)}>: unknown element; use <forwards>"
        for element in ours
        if element.tag != forwards.ROOT
    ]
    found = [element for element in ours if element.tag == forwards.ROOT]
    if len(found) > 1:
        errors.append(f"line {found[1].sourceline}: <forwards>: stands here a second time; keep one")
    if not found:
        return None, tuple(errors)
    declaration, more = forwards.parse_forwards(found[0])
    return declaration, (*errors, *more)


def foreign_macs(domain: Domain) -> MetadataError | None:
    """Return what is wrong where a declaration names a MAC address that no NIC of the domain has.

    A guest that is to start was given a wrong one; while it runs, the NIC may be yet to be
    plugged in, or have been plugged out.
    """
    have = {nic.mac for nic in domain.nics}
    declaration = domain.declaration or Declaration()
    hosts = [host.mac for host in declaration.hosts]
    asked = dict.fromkeys((*hosts, *(item.mac for item in declaration.port_forwards)))
    foreign = [mac for mac in asked if mac and mac not in have]
    listed = ", ".join(map(text.word, sorted(have))) or "none"
    errors = [f"mac={text.quote(mac)} is no NIC of this guest; its NICs: {listed}" for mac in foreign]
    told = tuple(f"guest {text.quote(domain.name)}: {error}" for error in errors)
    return MetadataError(domain, told) if told else None
