"""The entry of both hooks: one event of libvirt, from its arguments and XML to an exit status.

A hook never prints to stdout and never calls libvirt. What it has to say goes to the
journal; to stderr as well where libvirt shows it, which is where a start is refused.
"""

import os
import sys
from collections.abc import Mapping

from virt_forward import text
from virt_forward.claims import vetoes
from virt_forward.config import Config
from virt_forward.errors import LockTimeout, NftError, NftUnusableError, StateError, VirtForwardError
from virt_forward.hooks.events import Action, Event, parse_event
from virt_forward.hooks.prefilter import known, uuid_of
from virt_forward.host import log, process
from virt_forward.model import Domain, Guest
from virt_forward.reconcile import plan
from virt_forward.reconcile.reconciler import Reconciler, recover
from virt_forward.reconcile.wants import Absent, Present, Replugged, Restoring
from virt_forward.state.config_file import load_config, load_config_or_last
from virt_forward.state.ledger import Ledger
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
        entry = error.__traceback__
        while entry and entry.tb_next:
            entry = entry.tb_next
        where = f"{entry.tb_frame.f_code.co_filename}:{entry.tb_lineno}" if entry else "?"
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
    config = load_config_or_last(store)
    with store.lock():
        recover(store, config)
        reconciler = Reconciler(store, config)
        before = reconciler.ledger.known(domain.uuid)
        if before is None or before.phase != "running":
            reconciler.reconcile([Restoring(domain.uuid, domain.name)])


def _prepare(name: str, data: bytes, store: Store) -> None:
    uuid = _uuid(data)
    restoring = _is_restoring(name, Ledger(store).known(uuid), store)
    try:
        _guest_event(Action.CLAIM, data, store)
    except LockTimeout:
        raise
    except VirtForwardError as error:
        if not restoring:
            raise
        # What is wrong with it can be corrected while it runs, and hardly in the file it was saved to.
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
    with store.lock():
        recover(store, config)
        reconciler = Reconciler(store, config)
        planned = reconciler.plan([Present(domain, "prepared")])
        _raise_first(planned.errors)
        guest = planned.guests[domain.uuid]
        assert guest is not None
        error = foreign_macs(domain) or _conflicting(guest)
        restoring = _is_restoring(domain.name, reconciler.ledger.known(domain.uuid), store)
        refused = error if config.on_error != "warn" and not restoring else None
        _apply_claims(reconciler, domain.uuid, None if refused else guest)
    if refused:
        raise refused
    _log_conflicts(guest)


def _raise_first(errors: Mapping[str, VirtForwardError]) -> None:
    for error in errors.values():
        raise error


def _apply_claims(reconciler: Reconciler, uuid: str, guest: Guest | None) -> None:
    """Make a guest that does not run yet what it is to be; its rules may wait.

    What nft refuses then is another guest's, and no reason against this one's start.
    """
    try:
        reconciler.apply({uuid: guest})
    except NftUnusableError:
        raise
    except NftError as error:
        log.error(f"{error}; the next event tries again")


def _open(domain: Domain, store: Store) -> None:
    config = load_config_or_last(store)
    want = Present(domain, "running")
    try:
        with store.lock():
            recover(store, config)
            planned = Reconciler(store, config).reconcile([want])
    except LockTimeout:
        _queue(want, store, config)
        raise
    except StateError:
        store.queue_started(domain.uuid)
        raise
    guest = planned.guests[domain.uuid]
    if guest:
        _log_conflicts(guest)
    _raise_first(planned.errors)


def _queue(want: Present, store: Store, config: Config) -> None:
    """Leave a guest that runs to whoever has the lock next, its conflicts with the host resolved."""
    from virt_forward.reconcile.view import HostView

    host = HostView(config, store.networks)
    guest = plan.wanted(want, Ledger(store).known(want.uuid), host)
    store.queue(want.uuid, guest and plan.resolve_conflicts((), guest, None, host.veto(guest)))


def _replug(domain: Domain, store: Store) -> None:
    """Leave a guest that cannot be understood the forwards it has, but none at a NIC that is gone."""
    config = load_config_or_last(store)
    try:
        with store.lock():
            reconciler = Reconciler(store, config)
            before = reconciler.ledger.known(domain.uuid)
            if before and before.phase == "running" and before.nics != domain.nics:
                reconciler.reconcile([Replugged(domain.uuid, domain.nics)])
    except VirtForwardError as error:
        log.error(f"{text.word(domain.name)}: {error}")


def _conflicting(guest: Guest) -> VirtForwardError | None:
    if not guest.conflicts:
        return None
    remedies = dict.fromkeys(vetoes.remedy(reason) for _, reason in guest.conflicts)
    name = guest.name if text.is_word(guest.name) else guest.uuid
    # The copy that virt-clone makes of a guest has its forwards, too.
    removal = f"virt-forward remove {name} --all --config removes this guest's forwards"
    return VirtForwardError(_reasons(guest), "; ".join([*[*remedies][:3], removal]))


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
            Reconciler(store, load_config_or_last(store)).reconcile([Absent(uuid)])
    except LockTimeout:
        store.queue(uuid, None)
        raise


def _uuid(data: bytes) -> str:
    # The quick look at the XML has found this UUID and a record of it already.
    return os.path.basename(uuid_of(data))
