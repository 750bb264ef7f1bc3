"""The orders: one table in an SQLite file, which stands for your database.

Every change is one conditional UPDATE.  So it does not matter in which order a payment
and the end of the payment window arrive: exactly one of them finds the order unpaid.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

from shop.config import HERE

PATH = os.environ.get("SHOP_DATABASE", str(HERE / "shop.sqlite3"))


def insert(number: int) -> None:
    """Take an order."""
    with _transaction() as db:
        db.execute("INSERT INTO orders VALUES (?, 'unpaid')", (number,))


def set_paid(number: int) -> bool:
    """Note a payment; False if the order is not waiting for one (any more)."""
    return _leave_unpaid(number, "paid")


def set_cancelled(number: int) -> bool:
    """Cancel the order; False if it is not unpaid (any more)."""
    return _leave_unpaid(number, "cancelled")


def delete_cancelled() -> int:
    """Forget cancelled orders; returns how many there were."""
    with _transaction() as db:
        return db.execute("DELETE FROM orders WHERE status = 'cancelled'").rowcount


def status(number: int) -> str | None:
    """unpaid, paid, cancelled, or None for an order that is not there."""
    with _transaction() as db:
        row = db.execute("SELECT status FROM orders WHERE number = ?", (number,)).fetchone()
    return row[0] if row else None


def _leave_unpaid(number: int, status: str) -> bool:
    with _transaction() as db:
        changed = db.execute(
            "UPDATE orders SET status = ? WHERE number = ? AND status = 'unpaid'",
            (status, number),
        )
    return changed.rowcount == 1


@contextmanager
def _transaction() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(PATH, timeout=10)) as db, db:
        db.execute(
            "CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, status TEXT NOT NULL)"
        )
        yield db
