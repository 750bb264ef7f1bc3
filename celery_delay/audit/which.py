"""Which tasks are meant, as conditions on the table of tasks, and in which order they come.

The order is that of the eta, and of the ids for one eta.  A database gives it without sorting
only from an index that begins with *one* state (and one name, namespace or queue).  So a question
that names several, as most do, is asked once for each, and the answers are merged: as quick on a
table of any size, whatever the planner believes of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Subquery,
    and_,
    false,
    func,
    literal_column,
    select,
    union_all,
)

from celery_delay.audit.tables import tag, task
from celery_delay.domain.queues import lists_of

__all__ = ["everyone", "page", "starts", "tagged", "which"]

_ESCAPE = "/"
#: From how many tasks on a tag is frequent.
_MANY = 5_000


def which(
    name: str | None,
    pattern: str | None,
    queue: str | None,
    namespace: str | None,
    after_ms: int | None,
    before_ms: int | None,
) -> list[ColumnElement[bool]]:
    """The conditions, those on state and tags apart; see :meth:`AuditQueries.tasks`."""
    wanted: list[ColumnElement[bool]] = []
    for column, value in ((task.c.name, name), (task.c.namespace, namespace)):
        if value is not None:
            wanted.append(column == value)
    if pattern is not None:
        wanted.append(task.c.name.like(_like(pattern), escape=_ESCAPE))
    if queue is not None:
        wanted.append(task.c.queue.in_(lists_of(queue)))
    if after_ms is not None:
        wanted.append(task.c.eta_ms >= after_ms)
    if before_ms is not None:
        wanted.append(task.c.eta_ms <= before_ms)
    return wanted


def tagged(connection: Connection, tags: Sequence[str]) -> list[ColumnElement[bool]]:
    """The conditions on the tags.

    A rare tag leads to its tasks.  Of a frequent one, each task is asked whether it has it: MariaDB
    would read all that have it, even for a page.
    """
    found: list[ColumnElement[bool]] = []
    for one in tags:
        having = select(tag.c.task_id).where(tag.c.tag == one)
        some = having.order_by(tag.c.task_id).limit(_MANY).subquery()
        if (connection.scalar(select(func.count()).select_from(some)) or 0) < _MANY:
            found.append(task.c.task_id.in_(having))
        else:
            asked = select(func.count()).where(tag.c.tag == one, tag.c.task_id == task.c.task_id)
            found.append(asked.correlate(task).scalar_subquery() > literal_column("0"))
    return found


def starts(
    connection: Connection,
    states: Sequence[str],
    name: str | None,
    queue: str | None,
    namespace: str | None,
) -> list[ColumnElement[bool]]:
    """The places of an index at which tasks that are meant begin, as a condition each."""
    firsts: list[tuple[ColumnElement[bool], ...]]
    if name is not None:
        firsts = [(task.c.name == name,)]
    elif namespace is not None:
        firsts = [(task.c.namespace == namespace,)]
    elif queue is not None:
        firsts = [(task.c.queue == one,) for one in _used(connection, lists_of(queue))]
    else:
        firsts = [()]
    return [and_(*first, task.c.state == state) for first, state in product(firsts, states)] or [
        false()
    ]


def _used(connection: Connection, lists: Sequence[str]) -> Sequence[str]:
    """Those lists of a queue that any task has been on: mostly the first."""
    # in the order of the index, so that it is taken for a list of most tasks as well
    looks = (
        select(task.c.queue).where(task.c.queue == one).order_by(task.c.state).limit(1).subquery()
        for one in lists
    )
    return connection.scalars(union_all(*(select(one.c.queue) for one in looks))).all()


def page(
    columns: Sequence[ColumnElement[Any]],
    begin: Sequence[ColumnElement[bool]],
    conditions: Sequence[ColumnElement[bool]],
    latest_first: bool,
    limit: int,
    behind: tuple[int, str] | None = None,
) -> Select[Any]:
    """The query for *limit* tasks, of any of the starts; see :meth:`AuditQueries.tasks`."""
    ends = [()] if behind is None else _beyond(*behind, latest_first)
    parts = [
        _ordered(
            select(task.c.task_id, task.c.eta_ms).where(start, *end, *conditions),
            task,
            latest_first,
        )
        .limit(limit)
        .subquery()
        for start, end in product(begin, ends)
    ]
    found = union_all(*(select(one.c.task_id, one.c.eta_ms) for one in parts)).subquery()
    first = _ordered(select(found.c.task_id), found, latest_first).limit(limit).subquery()
    query = select(*columns).join(first, task.c.task_id == first.c.task_id)
    return _ordered(query, task, latest_first)


def everyone(
    column: ColumnElement[Any],
    begin: Sequence[ColumnElement[bool]],
    conditions: Sequence[ColumnElement[bool]],
) -> Subquery:
    """A column of all tasks of any of the starts."""
    return union_all(*(select(column).where(one, *conditions) for one in begin)).subquery()


def _ordered(query: Select[Any], table: FromClause, latest_first: bool) -> Select[Any]:
    order: list[ColumnElement[Any]] = [table.c.eta_ms, table.c.task_id]
    return query.order_by(*((one.desc() for one in order) if latest_first else order))


def _beyond(eta_ms: int, task_id: str, latest_first: bool) -> list[tuple[ColumnElement[bool], ...]]:
    """Those of the same eta, and the others: each is one stretch of an index.

    A row value would say the same in one, but MySQL takes no index for it.
    """
    eta, key = task.c.eta_ms, task.c.task_id
    if latest_first:
        return [(eta == eta_ms, key < task_id), (eta < eta_ms,)]
    return [(eta == eta_ms, key > task_id), (eta > eta_ms,)]


def _like(pattern: str) -> str:
    """A pattern for LIKE that takes whatever the shell pattern takes, and perhaps more."""
    found: list[Any] = []
    for part in re.findall(r"\[!?\]?[^]]*\]|.", pattern, re.DOTALL):
        if part in "*?":
            found.append("%" if part == "*" else "_")
        elif len(part) > 1:
            found.append("_")
        else:
            found.append(_ESCAPE + part if part in "%_/" else part)
    return "".join(found)
