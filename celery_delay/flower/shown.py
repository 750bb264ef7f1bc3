"""What of a stored task's arguments is shown: text without secrets, as the audit is told it."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery_delay.domain.entries import StoredEntry
from celery_delay.message.redaction import REDACTED, Redactor, Texts
from celery_delay.message.reprs import text_of

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["shown", "shown_call"]

#: Larger messages are not looked into, so nothing of them is shown; in bytes.
_LARGEST_BODY = 65_536

_redactors: WeakKeyDictionary[CeleryDelay, Redactor] = WeakKeyDictionary()


def shown(delayed: CeleryDelay, entry: StoredEntry) -> Texts:
    """The texts of positional and keyword arguments; ``None``: nothing is to be shown.

    As ``delay_audit_args`` and ``delay_audit_redact`` say, also where there is no audit.  A
    message that cannot be read here (it is no JSON, compressed, or large) shows nothing, but for
    ``delay_audit_args = "repr"``.
    """
    celerys = Texts(_text(entry, "argsrepr"), _text(entry, "kwargsrepr"))
    mode = delayed.settings.audit_args
    if mode == "repr" and delayed.settings.audit_redact is None:
        return celerys
    if mode == "off" or (known := _arguments(entry)) is None:
        return Texts(None, None)
    args, kwargs = known
    told = _redactor(delayed).texts(entry.task, args, kwargs, celerys)
    usual = _usual(delayed, args, kwargs)
    as_list = _usual(delayed, list(args), kwargs)
    return Texts(
        _least(told.args, celerys.args, usual.args, as_list.args),
        _least(told.kwargs, celerys.kwargs, usual.kwargs),
    )


def shown_call(delayed: CeleryDelay, task: str, args: Any, kwargs: Any) -> Texts:
    """The same of a periodic task's call; ``None``: it is known to its own code only."""
    if args is None or kwargs is None or delayed.settings.audit_args == "off":
        return Texts(None, None)
    return _redactor(delayed).texts(task, args, kwargs, _usual(delayed, args, kwargs))


def _usual(delayed: CeleryDelay, args: Any, kwargs: Any) -> Texts:
    """Celery's texts."""
    levels = delayed.app.conf.task_repr_maxlevels
    return Texts(text_of(args, levels), text_of(kwargs, levels))


def _least(told: str | None, celerys: str | None, *usual: str | None) -> str | None:
    """What the redactor tells; nothing but an ellipsis where the caller had words of his own.

    Those cannot be told from Celery's where arguments have changed on their way through JSON.
    """
    return told if told is celerys or celerys in usual else REDACTED


def _redactor(delayed: CeleryDelay) -> Redactor:
    found = _redactors.get(delayed)
    if found is None:
        tasks, levels = delayed.app.tasks, delayed.app.conf.task_repr_maxlevels
        found = _redactors[delayed] = Redactor(delayed.settings, tasks, levels, always=True)
    return found


def _arguments(entry: StoredEntry) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    body = entry.envelope.get("body")
    is_json = entry.envelope.get("content-type") == "application/json"
    if not is_json or entry.headers.get("compression") or not isinstance(body, str):
        return None
    if len(body) > _LARGEST_BODY:
        return None
    try:
        args, kwargs, _embed = json.loads(b64decode(body))
        return tuple(args), dict(kwargs)
    except (ValueError, TypeError):
        return None


def _text(entry: StoredEntry, name: str) -> str | None:
    found = entry.headers.get(name)
    return found if isinstance(found, str) else None
