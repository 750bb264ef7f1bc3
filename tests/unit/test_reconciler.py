"""The reconciler on a store and an audit in memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from celery_delay.domain.entries import EntryId
from celery_delay.domain.ports import Transition
from celery_delay.domain.states import State
from celery_delay.exceptions import StoreUnavailable
from celery_delay.services.reconciler import PAGE, Reconciler


class Store:
    """A shard after its history began anew: it has some entries, and not the others."""

    def __init__(self, has: Sequence[EntryId]) -> None:
        self.has = set(has)
        self.epoch, self.done = 7, 0
        self.said: list[Transition] = []
        self.away = False

    def history(self) -> tuple[int, int]:
        return self.epoch, self.done

    def missing(self, entry_ids: Sequence[EntryId]) -> list[EntryId]:
        return [one for one in entry_ids if one not in self.has]

    def record(self, transitions: Sequence[Transition]) -> None:
        if self.away:
            raise StoreUnavailable("away")
        self.said += transitions

    def reconciled(self, epoch: int) -> None:
        self.done = epoch


class Audit:
    """What SQL takes for waiting."""

    def __init__(self, waiting: Sequence[EntryId]) -> None:
        self.open = sorted(waiting)

    def waiting(self, after: EntryId | None, limit: int) -> list[EntryId]:
        return [one for one in self.open if after is None or one > after][:limit]

    def still_waiting(self, entry_ids: Sequence[EntryId]) -> list[EntryId]:
        return [one for one in entry_ids if one in self.open]


def entries(count: int) -> list[EntryId]:
    return [EntryId(f"task-{number:05d}", 1) for number in range(count)]


def reconcile(reconciler: Reconciler, term: int = 1) -> None:
    for _ in range(100):
        if not reconciler.run_once(term):
            return
    raise AssertionError("the reconciler does not come to an end")


def test_what_the_store_lost_is_said() -> None:
    # Given more entries than one page, every third of which the store has not
    known = entries(PAGE * 2 + 10)
    store = Store([one for number, one in enumerate(known) if number % 3])

    # When the epoch is reconciled
    reconcile(Reconciler(store, Audit(known)))

    # Then exactly those are LOST, once each, and the epoch is not looked at again
    assert sorted(one.entry_id for one in store.said) == known[::3]
    assert {one.state for one in store.said} == {State.LOST}
    assert store.done == store.epoch


def test_what_left_between_the_two_looks_is_not_lost() -> None:
    # Given an entry that the store has not
    [entry_id] = entries(1)
    store, audit = Store([]), Audit([entry_id])
    reconciler = Reconciler(store, audit)
    assert reconciler.run_once(1)

    # When the drain in between tells of its hand-off
    audit.open.remove(entry_id)
    reconcile(reconciler)

    # Then it is not LOST
    assert store.said == []
    assert store.done == store.epoch


def test_an_epoch_is_reconciled_once() -> None:
    store = Store([])
    store.done = store.epoch

    assert not Reconciler(store, Audit(entries(3))).run_once(1)
    assert store.said == []


def test_a_history_without_a_name_waits() -> None:
    store = Store([])
    store.epoch = 0

    assert not Reconciler(store, Audit(entries(3))).run_once(1)
    assert store.done == 0


def test_a_new_term_begins_again() -> None:
    # Given a leader that had looked at the first page and then lost the lease
    known = entries(PAGE + 1)
    store, audit = Store([]), Audit(known)
    reconciler = Reconciler(store, audit)
    reconciler.run_once(1)

    # When it leads again
    reconcile(reconciler, term=3)

    # Then nothing is left out
    assert sorted(one.entry_id for one in store.said) == known


def test_a_store_that_goes_away_loses_nothing_of_it() -> None:
    # Given suspects, and a store that is away when they are to be said
    known = entries(2)
    store = Store([])
    reconciler = Reconciler(store, Audit(known))
    reconciler.run_once(1)
    store.away = True
    with pytest.raises(StoreUnavailable):
        reconciler.run_once(1)

    # When it is back
    store.away = False
    reconcile(reconciler)

    # Then they are said
    assert sorted(one.entry_id for one in store.said) == known
