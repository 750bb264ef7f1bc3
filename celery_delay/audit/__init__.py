"""The SQL side: the story of every delayed task.

``tables`` names each table, ``version`` tells whose they are and how old, ``database``
connects, ``schema`` makes and migrates the tables, ``merge`` folds events into rows, ``rows``
writes many at once, ``log`` takes what the journal says, ``queries`` reads it back.  Only this
package imports SQLAlchemy and Alembic.
"""

from __future__ import annotations

import logging

# Alembic names each of its plugins at INFO whenever it is imported.  A project that wants to
# hear it gives the logger a level of its own.
_alembic = logging.getLogger("alembic")
if _alembic.level == logging.NOTSET:
    _alembic.setLevel(logging.WARNING)
