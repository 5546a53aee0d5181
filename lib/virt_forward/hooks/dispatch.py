"""The entry of both hooks: one event of libvirt, from its arguments and XML to an exit status.

A hook never prints to stdout and never calls libvirt. What it has to say goes to the
journal; to stderr as well where libvirt shows it, which is where a start is refused.
"""

import os
import sys

from virt_forward import text
from virt_forward.claims import vetoes
from virt_forward.config import Config
from virt_forward.errors import (
    LockTimeout,
    NftError,
    NftMissingError,
    StateError,
    StateRemovedError,
    VirtForwardError,
)
from virt_forward.hooks.events import Action, Event, parse_event
from virt_forward.hooks.prefilter import known, uuid_of
from virt_forward.host import log, process
from virt_forward.model import Domain, Guest
from virt_forward.reconcile import plan
from virt_forward.reconcile.apply import apply, reconcile
from virt_forward.reconcile.plan import Plan
from virt_forward.reconcile.planning import Context, context, located, make_plan
from virt_forward.reconcile.wants import Absent, Present, Replugged, Restoring
from virt_forward.state.config_file import load_config, load_config_or_last
from virt_forward.state.snapshot import Snapshot
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
        return _report_failure(event, error.messages, error.hint)
    except Exception as error:  # a guest must not die of our mistakes
        entry = error.__traceback__
        while entry and entry.tb_next:
            entry = entry.tb_next
        where = f"{entry.tb_frame.f_code.co_filename}:{entry.tb_lineno}" if entry else "?"
        return _report_failure(
            event, (f"internal error: {type(error).__name__}: {error} ({where})",), "please report it"
        )
    return 0


def _report_failure(event: Event, messages: tuple[str, ...], hint: str) -> int:
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
    """Handle an event; once more where the run directory was removed meanwhile, and the state with it."""
    try:
        _act(event, data)
    except StateRemovedError as error:
        log.warning(f"{_words(event)}: {error}; it is handled again")
        _act(event, data)


def _act(event: Event, data: bytes) -> None:
    action = event.policy.action
    store = Store()
    if action is Action.RESTORE:
        _mark_restoring(data, store)
    elif action is Action.CLAIM:
        _prepare(event.name, data, store)
    elif action is Action.OPEN:
        _guest_event(action, data, store)
    elif action is Action.CLOSE:
        _close(event.name, data, store)
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
    with store.open() as state:
        before = state.guest(domain.uuid)
        if before is None or before.phase != "running":
            work = context(store, state, load_config_or_last(state))
            reconcile(work, [Restoring(domain.uuid, domain.name)])


def _prepare(name: str, data: bytes, store: Store) -> None:
    uuid = _uuid(data)
    restoring = known(store.path, uuid) and _was_restoring(name, uuid, store)
    try:
        _guest_event(Action.CLAIM, data, store)
    except LockTimeout:
        raise
    except VirtForwardError as error:
        if not restoring:
            raise
        # What is wrong with it can be corrected while it runs, and hardly in the file it was saved to.
        for message in text.lines(f"{m}; it is restored without its forwards" for m in error.messages):
            log.error(message)
        _drop_quietly(name, uuid, store)


def _was_restoring(name: str, uuid: str, store: Store) -> bool:
    with store.peek() as state:
        return state is not None and _is_restoring(name, uuid, state)


def _is_restoring(name: str, uuid: str, state: Snapshot) -> bool:
    """Tell whether the start of a guest is a restore, by the mark that its ``restore begin`` has left."""
    guest = state.guest(uuid)
    # libvirt restores no guest under a name that it does not have any more; the mark of that one is left.
    if guest is None or guest.phase != "restoring" or guest.name != name:
        return False
    return state.age(uuid) < RESTORE_SECONDS


def _guest_event(action: Action, data: bytes, store: Store) -> None:
    from virt_forward.metadata.domain import MetadataError, parse_domain, parse_known

    try:
        domain = parse_domain(data) if action is Action.CLAIM else parse_known(data)
    except MetadataError as error:
        # A guest that runs keeps what it has; one that is to start has nothing to go by.
        if action is Action.OPEN:
            _replug(error.domain, store)
        else:
            _drop_quietly(error.domain.name, error.domain.uuid, store)
        raise
    if domain.declaration is None:
        _drop(domain.name, domain.uuid, store)
    elif action is Action.CLAIM:
        _claim(domain, store)
    else:
        _open(domain, store)


def _drop_quietly(name: str, uuid: str, store: Store) -> None:
    try:
        _drop(name, uuid, store)
    except VirtForwardError as error:
        log.error(f"{uuid}: {error}")


def _drop(name: str, uuid: str, store: Store) -> None:
    """Forget a guest that declares nothing any more."""
    if known(store.path, uuid):
        _forget(name, uuid, store)


def _claim(domain: Domain, store: Store) -> None:
    from virt_forward.metadata.domain import foreign_macs

    config = load_config()
    with store.open() as state:
        work = context(store, state, config)
        planned = make_plan(work, [Present(domain, "prepared")])
        guest = planned.after.get(domain.uuid)
        error = planned.errors.get(domain.uuid) or foreign_macs(domain) or (guest and _conflicting(guest))
        restoring = _is_restoring(domain.name, domain.uuid, state)
        refused = error if planned.errors or (config.on_error != "warn" and not restoring) else None
        if refused:
            # What others have queued is done all the same.
            planned = make_plan(work, [Absent(domain.uuid)])
        _apply_claims(work, planned)
    if refused:
        raise refused
    if guest:
        _log_conflicts(guest)


def _apply_claims(work: Context, planned: Plan) -> None:
    """Make a guest that does not run yet what it is to be; its rules may wait.

    What nft refuses then is another guest's, and no reason against this one's start. Nor is that the whole
    table has to be rebuilt, and takes longer than a hook may.
    """
    try:
        apply(work, planned)
    except NftMissingError:
        raise
    except NftError as error:
        log.error(f"{error}; the next event tries again")


def _open(domain: Domain, store: Store) -> None:
    want = Present(domain, "running")
    try:
        with store.open() as state:
            planned = reconcile(context(store, state, load_config_or_last(state)), [want])
    except LockTimeout:
        _queue(want, store)
        raise
    guest = planned.after.get(domain.uuid)
    if guest:
        _log_conflicts(guest)
    for error in planned.errors.values():
        raise error


def _queue(want: Present, store: Store) -> None:
    """Leave a guest that runs to whoever has the lock next, its conflicts with the host resolved."""
    with store.peek() as state:
        if state is None:
            return
        work = context(store, state, load_config_or_last(state))
        found = located(work, [want])[want.uuid]
        if found.error:
            raise found.error
        if found.guest:
            store.queue(state, want.uuid, plan.resolve_one((), found.guest, found.before, found.vetoed.get))


def _replug(domain: Domain, store: Store) -> None:
    """Leave a guest that cannot be understood the forwards it has, but none at a NIC that is gone."""
    try:
        with store.open() as state:
            before = state.guest(domain.uuid)
            if before and before.phase == "running" and before.nics != domain.nics:
                work = context(store, state, load_config_or_last(state))
                reconcile(work, [Replugged(domain.uuid, domain.nics)])
    except VirtForwardError as error:
        log.error(f"{text.word(domain.name)}: {error}")


def _conflicting(guest: Guest) -> VirtForwardError | None:
    if not guest.conflicts:
        return None
    remedies = dict.fromkeys(vetoes.remedy(reason) for _, reason in guest.conflicts)
    name = text.domain_argument(guest.name, guest.uuid)
    # The copy that virt-clone makes of a guest has its forwards, too.
    removal = f"virt-forward remove {name} --all --config removes this guest's forwards"
    return VirtForwardError(_reasons(guest), "; ".join([*[*remedies][:3], removal]))


def _reasons(guest: Guest) -> list[str]:
    reasons = dict.fromkeys(reason for _, reason in guest.conflicts)
    return [f"guest {text.quote(guest.name)}: {reason}" for reason in reasons]


def _log_conflicts(guest: Guest) -> None:
    for message in text.lines(f"{reason}; this forward is kept out" for reason in _reasons(guest)):
        log.warning(message)


def _close(name: str, data: bytes, store: Store) -> None:
    uuid = _uuid(data)
    try:
        _forget(name, uuid, store)
    except StateError:
        _empty_chains(name, uuid)
        raise


def _empty_chains(name: str, uuid: str) -> None:
    """Take a guest's rules away without knowing what they are; where they are follows from its name."""
    from virt_forward.reconcile import kernel

    kernel.empty_chains(name, uuid)


def _forget(name: str, uuid: str, store: Store) -> None:
    try:
        with store.open() as state:
            if state.is_new and not state.knows(uuid):
                # To rebuild the table from a state that replaces a lost one would close other guests.
                _empty_chains(name, uuid)
                store.unmark(state, {uuid})
            else:
                reconcile(context(store, state, load_config_or_last(state)), [Absent(uuid)])
    except LockTimeout:
        with store.peek() as state:
            if state:
                store.queue(state, uuid, None)
        raise


def _uuid(data: bytes) -> str:
    # The quick look at the XML has found this UUID and a record of it already.
    return os.path.basename(uuid_of(data))
