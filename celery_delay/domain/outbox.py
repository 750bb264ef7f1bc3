"""Scheduling in the caller's own transaction: what it commits is scheduled, and nothing else.

The row is written by the caller's connection, beside whatever else the transaction does.  After
the commit a hook mirrors it; whoever dies in between leaves a row that the leader's relay finds.
A rollback leaves nothing, since nothing but the transaction has known of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from celery_delay.domain.backing import BackedRow

__all__ = ["Transaction", "transaction", "within"]


class Transaction(Protocol):
    """A transaction of the caller's, in the audit's database."""

    def clock_ms(self) -> int | None:
        """SQL's clock, in ms; ``None`` if it cannot be asked now."""
        ...

    def write(self, rows: Sequence[BackedRow]) -> None:
        """Insert *rows* in it; the errors are the caller's driver's."""
        ...

    def afterwards(self, call: Callable[[], None]) -> None:
        """Have *call* called when it has ended, where that can be known."""
        ...


_transaction: ContextVar[Transaction | None] = ContextVar("celery_delay_transaction", default=None)


def transaction() -> Transaction | None:
    """The transaction in which entries are to be written now."""
    return _transaction.get()


@contextmanager
def within(wanted: Transaction) -> Iterator[None]:
    """Write all entries that are stored in this context in the transaction *wanted*."""
    token = _transaction.set(wanted)
    try:
        yield
    finally:
        _transaction.reset(token)
