"""The metadata of a domain in libvirt: of the running guest, and of its persistent configuration."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from virt_forward import text
from virt_forward.errors import VirtForwardError
from virt_forward.libvirtd import api
from virt_forward.metadata.forwards import NAMESPACE
from virt_forward.metadata.tree import Submission

Part = Literal["config", "live"]
"""A domain has up to two definitions: what runs, and what the next start makes of it."""


class Target(NamedTuple):
    """A domain whose metadata is to be changed; ``handle`` is libvirt's object.

    ``saved`` tells whether its next start goes on from a managed save image, with the metadata in that.
    """

    handle: Any
    name: str
    uuid: str
    active: bool
    persistent: bool
    saved: bool = False


def target(opened: Any, uuid: str) -> Target:
    """Return the domain with a UUID. Raises VirtForwardError if it does not exist any more."""
    libvirt = api.module()
    try:
        handle = opened.lookupByUUIDString(uuid)
        persistent = bool(handle.isPersistent())
        saved = persistent and bool(handle.hasManagedSaveImage(0))
        return Target(handle, handle.name(), uuid, bool(handle.isActive()), persistent, saved)
    except libvirt.libvirtError as error:
        raise VirtForwardError(f"domain {uuid}: {text.output(str(error))}", api.LOOK) from None


def parts(found: Target, *, live: bool, config: bool) -> tuple[Part, ...]:
    """Return which definitions to change, as virsh understands --live and --config.

    Without either, those that there are. Raises VirtForwardError for one that does not exist.
    """
    name = text.word(found.name)
    if live and not found.active:
        raise VirtForwardError(
            f"{name} is not running, so there is nothing to change live",
            "leave --live out: the change takes effect at the next start",
        )
    if config and not found.persistent:
        raise VirtForwardError(
            f"{name} is transient: it has no configuration that would outlast it", "leave --config out"
        )
    existing: dict[Part, bool] = {"config": found.persistent, "live": found.active}
    asked: dict[Part, bool] = {"config": config, "live": live} if live or config else existing
    return tuple(part for part, wanted in asked.items() if wanted)


def read(found: Target, part: Part) -> bytes:
    """Return the domain XML of a definition. Raises VirtForwardError."""
    libvirt = api.module()
    flags = libvirt.VIR_DOMAIN_XML_INACTIVE if part == "config" else 0
    try:
        xml: str = found.handle.XMLDesc(flags)
        return xml.encode()
    except libvirt.libvirtError as error:
        raise VirtForwardError(f"{text.word(found.name)}: {text.output(str(error))}", api.LOOK) from None


def write(found: Target, after: Mapping[Part, Submission], before: Mapping[Part, Submission]) -> None:
    """Set our metadata in each definition of ``after``: in all of them, or in none.

    The configuration is first, since it is a file that may fail to be written. Raises VirtForwardError; what
    was set before is set back then.
    """
    libvirt = api.module()
    done: list[Part] = []
    for part in sorted(after):
        try:
            _set(libvirt, found, part, after[part])
        except libvirt.libvirtError as error:
            message = f"libvirt does not set the metadata of {text.word(found.name)} ({part})"
            messages = [f"{message}: {text.output(str(error))}"]
            raise VirtForwardError([*messages, *_undo(found, done, before)], api.LOOK) from None
        done.append(part)


def _undo(found: Target, done: list[Part], before: Mapping[Part, Submission]) -> Iterator[str]:
    """Set back what was done; yield what cannot be."""
    libvirt = api.module()
    for part in done:
        try:
            _set(libvirt, found, part, before[part])
        except libvirt.libvirtError as error:
            yield f"nor back to what it was ({part}): {text.output(str(error))}"


def _set(libvirt: Any, found: Target, part: Part, submission: Submission) -> None:
    flags = {"config": libvirt.VIR_DOMAIN_AFFECT_CONFIG, "live": libvirt.VIR_DOMAIN_AFFECT_LIVE}
    kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
    key = None if submission.element is None else submission.key
    found.handle.setMetadata(kind, submission.element, key, NAMESPACE, flags[part])


def declarations(opened: Any, besides: str) -> Iterator[bytes]:
    """Yield the domain XML of every definition of other domains than that with the UUID ``besides``."""
    libvirt = api.module()
    try:
        domains = opened.listAllDomains()
    except libvirt.libvirtError as error:
        raise api.not_listed(error) from None
    for domain in domains:
        try:
            if domain.UUIDString() == besides:
                continue
            xmls = [domain.XMLDesc(0)] if domain.isActive() else []
            if domain.isPersistent():
                xmls.append(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        except libvirt.libvirtError as error:
            if api.is_undefined(libvirt, error):
                continue
            raise api.not_listed(error) from None
        yield from (xml.encode() for xml in xmls)


def configurations(opened: Any) -> dict[str, bytes]:
    """Return by UUID the domain XML that the next start of each running persistent domain uses."""
    libvirt = api.module()
    found: dict[str, bytes] = {}
    try:
        flags = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE | libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT
        for domain in opened.listAllDomains(flags):
            try:
                found[domain.UUIDString()] = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).encode()
            except libvirt.libvirtError as error:
                if not api.is_undefined(libvirt, error):
                    raise
    except libvirt.libvirtError as error:
        raise api.not_listed(error) from None
    return found
