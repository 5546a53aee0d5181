"""The entry of both hooks: one event of libvirt, from its arguments and XML to an exit status.

A hook never prints to stdout and never calls libvirt. What it has to say goes to the
journal; to stderr as well where libvirt shows it, which is where a start is refused.
"""

import os
import sys

from virt_forward import text
from virt_forward.addresses import attachments, resolve
from virt_forward.claims import index as claims
from virt_forward.claims import vetoes
from virt_forward.config import Config
from virt_forward.errors import LockTimeout, NftError, NftUnusableError, StateError, VirtForwardError
from virt_forward.hooks.events import Action, Event, parse_event
from virt_forward.hooks.prefilter import known
from virt_forward.host import log, process
from virt_forward.model import Domain, Guest, Phase
from virt_forward.reconcile.engine import Engine, resolve_conflicts
from virt_forward.state.config_file import load_config, load_config_or_last
from virt_forward.state.store import Store

SECONDS = 15.0
"""How long an event may take as a whole: libvirtd waits for the hook, without a limit of its own."""

RESTORE_SECONDS = 60.0
"""How long after ``restore begin`` a ``prepare begin`` may be that of the restore. libvirt calls one right
after the other, unless it finds that it cannot restore the guest; then nothing follows."""


def main(driver: str, arguments: list[str], data: bytes) -> int:
    """Do what an event asks for, and return the exit status that libvirt is to see."""
    process.limit(SECONDS)
    event = parse_event(driver, arguments)
    try:
        _handle(event, data)
    except LockTimeout as error:
        # Somebody else's delay is no reason to refuse a guest; its next event has another try.
        log.error(f"{_words(event)}: {error}")
    except VirtForwardError as error:
        return _failed(event, error.messages, error.hint)
    except Exception as error:  # a guest must not die of our mistakes
        attachment = error.__traceback__
        while attachment and attachment.tb_next:
            attachment = attachment.tb_next
        where = f"{attachment.tb_frame.f_code.co_filename}:{attachment.tb_lineno}" if attachment else "?"
        return _failed(
            event, (f"internal error: {type(error).__name__}: {error} ({where})",), "please report it"
        )
    return 0


def _failed(event: Event, messages: tuple[str, ...], hint: str) -> int:
    refuse = event.policy.may_refuse and _on_error() == "refuse"
    for message in text.lines(messages):
        log.error(f"{_words(event)}: {message}")
        if refuse:
            print(text.line(f"virt-forward: error: {message}"), file=sys.stderr)
    if refuse and hint:
        print(text.line(f"hint: {hint}"), file=sys.stderr)
    return 1 if refuse else 0


def _words(event: Event) -> str:
    return " ".join(map(text.word, (event.driver, event.name, event.operation)))


def _on_error() -> str:
    try:
        return load_config().on_error
    except VirtForwardError:
        return Config().on_error


def _handle(event: Event, data: bytes) -> None:
    action = event.policy.action
    store = Store()
    if action is Action.RESTORE:
        _mark_restoring(data, store)
    elif action is Action.CLAIM:
        _prepare(event.name, data, store)
    elif action is Action.OPEN:
        _guest_event(action, data, store)
    elif action is Action.CLOSE:
        _close(data, store)
    elif action is not Action.NOTHING:
        from virt_forward.hooks import network_events

        network_events.handle(action, data, store)


def _mark_restoring(data: bytes, store: Store) -> None:
    """Leave a mark for the prepare that follows: a guest that is restored is not refused.

    libvirt calls this before it notices that the guest runs already, and then nothing follows.
    """
    from virt_forward.metadata.domain import MetadataError, parse_domain

    try:
        domain = parse_domain(data)
    except MetadataError as error:
        domain = error.domain
    with store.lock():
        engine = Engine(store, load_config_or_last(store))
        engine.catch_up()
        before = engine.known(domain.uuid)
        if before is None or before.phase != "running":
            engine.change({domain.uuid: Guest(domain.uuid, domain.name, "restoring")})


def _prepare(name: str, data: bytes, store: Store) -> None:
    uuid = _uuid(data)
    restoring = _is_restoring(name, Engine(store, Config()).known(uuid), store)
    try:
        _guest_event(Action.CLAIM, data, store)
    except LockTimeout:
        raise
    except VirtForwardError as error:
        if not restoring:
            raise
        # What is wrong with it can be mended while it runs, and hardly in the file it was saved to.
        for message in error.messages:
            log.error(f"{message}; it is restored without its forwards")
        _drop_quietly(uuid, store)


def _is_restoring(name: str, guest: Guest | None, store: Store) -> bool:
    """Tell whether the start of a guest is a restore, by the mark that its ``restore begin`` has left."""
    # libvirt restores no guest under a name that it does not have any more; the mark of that one is left.
    if guest is None or guest.phase != "restoring" or guest.name != name:
        return False
    return store.age_of_guest(guest.uuid) < RESTORE_SECONDS


def _guest_event(action: Action, data: bytes, store: Store) -> None:
    from virt_forward.metadata.domain import MetadataError, parse_domain

    try:
        domain = parse_domain(data)
    except MetadataError as error:
        # A guest that runs keeps what it has; one that is to start has nothing to go by.
        if action is Action.OPEN:
            _replug(error.domain, store)
        else:
            _drop_quietly(error.domain.uuid, store)
        raise
    if domain.declaration is None:
        _drop(domain.uuid, store)
    elif action is Action.CLAIM:
        _claim(domain, store)
    else:
        _open(domain, store)


def _drop_quietly(uuid: str, store: Store) -> None:
    try:
        _drop(uuid, store)
    except VirtForwardError as error:
        log.error(f"{uuid}: {error}")


def _drop(uuid: str, store: Store) -> None:
    """Forget a guest that declares nothing any more."""
    if known(store.path, uuid):
        _forget(uuid, store)


def _claim(domain: Domain, store: Store) -> None:
    from virt_forward.metadata.domain import foreign_macs

    config = load_config()
    guest, engine, veto = _resolved(domain, store, config, "prepared")
    with store.lock():
        engine.catch_up()
        before = engine.known(domain.uuid)
        others = claims.without(engine.index(), [domain.uuid])
        settled = resolve_conflicts(others, guest, None, veto)
        error = foreign_macs(domain) or _conflicting(settled)
        if error and config.on_error != "warn" and not _is_restoring(domain.name, before, store):
            _change_claims(engine, domain.uuid, None)
            raise error
        _change_claims(engine, domain.uuid, settled)
    _log_conflicts(settled)


def _change_claims(engine: Engine, uuid: str, guest: Guest | None) -> None:
    """Make a guest that does not run yet what it is to be; its rules may wait.

    What nft refuses then is another guest's, and no reason against this one's start.
    """
    try:
        engine.change({uuid: guest})
    except NftUnusableError:
        raise
    except NftError as error:
        log.error(f"{error}; the next event tries again")


def _open(domain: Domain, store: Store) -> None:
    config = load_config_or_last(store)
    try:
        guest, engine, veto = _resolved(domain, store, config, "running")
    except VirtForwardError:
        _replug(domain, store)
        raise
    try:
        with store.lock():
            engine.catch_up()
            others = claims.without(engine.index(), [domain.uuid])
            settled = resolve_conflicts(others, guest, engine.known(domain.uuid), veto)
            engine.change({domain.uuid: settled})
    except LockTimeout:
        store.leave(domain.uuid, resolve_conflicts((), guest, None, veto))
        raise
    except StateError:
        store.leave_started(domain.uuid)
        raise
    _log_conflicts(settled)


def _replug(domain: Domain, store: Store) -> None:
    """Leave a guest that cannot be understood the forwards it has, but none at a NIC that is gone."""
    try:
        with store.lock():
            engine = Engine(store, load_config_or_last(store))
            before = engine.known(domain.uuid)
            if before and before.phase == "running" and before.nics != domain.nics:
                others = claims.without(engine.index(), [domain.uuid])
                now = engine.settled(others, before._replace(nics=domain.nics))
                engine.change({domain.uuid: now or before})
    except VirtForwardError as error:
        log.error(f"{text.word(domain.name)}: {error}")


def _resolved(
    domain: Domain, store: Store, config: Config, phase: Phase
) -> tuple[Guest, Engine, claims.Veto]:
    from virt_forward.host import collect, hostports

    networks = [nic.source for nic in domain.nics if nic.type == "network"]
    facts = collect.host_facts(config, store.networks() if networks else (), networks)
    known = Engine(store, config).known(domain.uuid) if phase == "running" else None
    veto, spared = hostports.port_checks(
        config,
        attachments.find_attachments(domain.nics, facts),
        hosts=domain.declaration.hosts if domain.declaration else (),
        held=known.forwards if known else (),
    )
    guest = resolve.resolve(domain, facts, config, phase, spared)
    if phase == "running":
        # A libvirtd that restarts is no reason to forget an address that only the guest's traffic told.
        guest = resolve.locate_known(guest, known, facts)
    return guest, Engine(store, config, facts.own_addresses), veto


def _conflicting(guest: Guest) -> VirtForwardError | None:
    remedies = dict.fromkeys(vetoes.remedy(reason) for _, reason in guest.conflicts)
    return VirtForwardError(_reasons(guest), "; ".join([*remedies][:3])) if guest.conflicts else None


def _reasons(guest: Guest) -> list[str]:
    reasons = dict.fromkeys(reason for _, reason in guest.conflicts)
    return [f"guest {text.quote(guest.name)}: {reason}" for reason in reasons]


def _log_conflicts(guest: Guest) -> None:
    for reason in _reasons(guest):
        log.warning(f"{reason}; this forward is kept out")


def _close(data: bytes, store: Store) -> None:
    _forget(_uuid(data), store)


def _forget(uuid: str, store: Store) -> None:
    try:
        with store.lock():
            Engine(store, load_config_or_last(store)).change({uuid: None})
    except LockTimeout:
        store.leave(uuid, None)
        raise


def _uuid(data: bytes) -> str:
    # The quick look at the XML has found this UUID and a record of it already.
    found = data.partition(b"<uuid>")[2].partition(b"</uuid>")[0].decode("ascii", "replace").strip().lower()
    return os.path.basename(found)
