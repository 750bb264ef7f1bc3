"""What the audit is told of a task's arguments: text without the values that are nobody's business.

The rule looks at names only: keyword arguments, keys of mappings at any depth, fields of named
tuples and dataclasses, and the parameters that positional arguments are bound to where the task
is registered in this process.  Upper and lower case are one.

* A name is secret if one of :data:`ANYWHERE` is in it once everything but letters and digits is
  taken out: ``X-Api-Key``, ``newPassword``, ``token_type``.
* It is secret, too, if one of :data:`WORDS` is a whole word of it: ``card``, ``card_no``,
  ``PinCode``, but not ``discard`` or ``opinion``.  Words end at case changes, digits and signs.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any, NamedTuple

from kombu.utils.imports import symbol_by_name

from celery_delay.domain.settings import Settings
from celery_delay.exceptions import InvalidSetting
from celery_delay.message.reprs import text_of

__all__ = ["ANYWHERE", "REDACTED", "WORDS", "Redactor", "Texts", "is_secret", "redacted"]

logger = logging.getLogger(__name__)

#: Stands where a value was.
REDACTED = "\N{HORIZONTAL ELLIPSIS}"

#: Secret wherever they are in a name.
ANYWHERE = (
    "password", "passwd", "passphrase", "passcode", "secret", "token", "apikey", "accesskey",
    "privatekey", "signingkey", "encryptionkey", "authorization", "cookie", "credential",
    "creditcard", "sessionid", "securitycode",
)  # fmt: skip
#: Secret where they are a whole word of a name.
WORDS = frozenset("auth bearer card cards cvc cvv iban jwt otp pass pin pins pwd ssn".split())

#: Mappings in mappings deeper than this are not looked into: nothing of them is shown.
_DEEPEST = 16
#: As long as Celery's own texts.
_LONGEST = 1024

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_SCALARS = frozenset({str, int, float, bool, type(None), bytes})


class Texts(NamedTuple):
    """What is told of a task's arguments; ``None``: nothing."""

    args: str | None
    kwargs: str | None


class _Places(NamedTuple):
    """The positions of secret parameters; behind *rest* all are."""

    first: int
    places: Set[int]
    rest: int

    def has(self, place: int) -> bool:
        return place in self.places or place >= self.rest


_NOWHERE = _Places(sys.maxsize, frozenset(), sys.maxsize)
_NONE = Texts(None, None)


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether a value of that name is not to be shown."""
    bare = re.sub(r"[\W_]", "", name).lower()
    if any(one in bare for one in ANYWHERE):
        return True
    words = [one.lower() for one in _WORD.findall(name)]
    return any(one in WORDS for one in words) or name.lower() in WORDS


def redacted(value: Any) -> Any:
    """*value* with :data:`REDACTED` in the places of secrets; *value* itself if it has none."""
    return _redacted(value, 0)


def _redacted(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _SCALARS:
        return value
    if depth > _DEEPEST:
        return REDACTED
    if isinstance(value, Mapping):
        return _mapping(value, depth)
    if isinstance(value, (list, tuple)):
        if hasattr(value, "_fields"):
            return _fields(value, dict(zip(value._fields, value, strict=False)), depth)
        parts = [_redacted(one, depth + 1) for one in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return tuple(parts) if isinstance(value, tuple) else parts
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = {one.name: getattr(value, one.name, None) for one in dataclasses.fields(value)}
        return _fields(value, shown, depth)
    return value


def _mapping(value: Mapping[Any, Any], depth: int) -> Any:
    changed: dict[Any, Any] = {}
    for key, one in value.items():
        new = REDACTED if _is_secret_key(key) else _redacted(one, depth + 1)
        if new is not one:
            changed[key] = new
    return {**value, **changed} if changed else value


def _fields(value: Any, fields: dict[str, Any], depth: int) -> Any:
    shown = _mapping(fields, depth)
    return value if shown is fields else shown


def _is_secret_key(key: Any) -> bool:
    if isinstance(key, bytes):
        key = key.decode("latin-1")
    return isinstance(key, str) and is_secret(key)


class Redactor:
    """Makes the texts for one app, as ``delay_audit_args`` and ``delay_audit_redact`` say.

    Arguments:
        tasks: the app's tasks by name; looked into for the names of parameters.
        levels: ``task_repr_maxlevels``.
        always: also where there is no audit: for somebody else who shows arguments.

    Raises:
        InvalidSetting: ``delay_audit_redact`` names nothing that can be called.
    """

    def __init__(
        self, settings: Settings, tasks: Mapping[str, Any], levels: int, *, always: bool = False
    ) -> None:
        self._mode = settings.audit_args if settings.audited or always else "off"
        self._hook = _hook_of(settings.audit_redact) if self._mode != "off" else None
        self._tasks = tasks
        self._levels = levels
        self._secret: dict[str, tuple[Any, _Places]] = {}
        #: Tasks whose hook has failed; said once.
        self._failed: set[str] = set()

    def texts(self, task: str, args: Any, kwargs: Any, celerys: Texts, own: Texts = _NONE) -> Texts:
        """What is told of one call.

        Arguments:
            celerys: the texts of the message's headers.
            own: those of them that the caller has written, which are told as they are.

        Returns:
            *celerys*' own objects where nothing has to be hidden.
        """
        if self._mode == "off":
            return _NONE
        # most calls: a few microseconds matter in what takes a hundred
        usual = self._hook is None and own == _NONE
        if usual and (self._mode == "repr" or self._is_plain(task, args, kwargs)):
            return celerys
        if own.args is not None and own.kwargs is not None:
            return own
        shown = self._hooked(task, args, kwargs) if self._hook is not None else (args, kwargs)
        if self._mode == "redacted":
            shown = self._positions(task, shown[0], args), redacted(shown[1])
        return Texts(
            own.args if own.args is not None else self._text(shown[0], args, celerys.args),
            own.kwargs if own.kwargs is not None else self._text(shown[1], kwargs, celerys.kwargs),
        )

    def _is_plain(self, task: str, args: Any, kwargs: Any) -> bool:
        """Whether there is certainly no secret, at a glance."""
        if args and len(args) > self._hidden(task).first:
            return False
        for one in args:
            if type(one) not in _SCALARS:
                return False
        for name, one in kwargs.items():
            if type(one) not in _SCALARS or type(name) is not str or is_secret(name):
                return False
        return True

    def _text(self, shown: Any, real: Any, celerys: str | None) -> str | None:
        if shown is real:
            return celerys
        if shown is None or isinstance(shown, str):
            return shown and shown[:_LONGEST]
        return text_of(shown, self._levels)

    def _hooked(self, task: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        assert self._hook is not None
        try:
            shown_args, shown_kwargs = self._hook(task, args, kwargs)
        except Exception as exc:
            if task not in self._failed:
                self._failed.add(task)
                # not what it says: that may be an argument
                logger.error(
                    "delay_audit_redact failed on %s with %s in %s: the audit gets none of its"
                    " arguments",
                    task,
                    type(exc).__name__,
                    _place(exc),
                    extra={"event": "redact_failed", "task": task},
                )
            return REDACTED, REDACTED
        return shown_args, shown_kwargs

    def _positions(self, task: str, shown: Any, args: Any) -> Any:
        """*shown* without what is secret by its own keys, or by the name of its parameter."""
        if not isinstance(shown, (list, tuple)) or not shown:
            return shown if isinstance(shown, str) else redacted(shown)
        clean = redacted(shown)
        if not isinstance(clean, (list, tuple)):
            return clean
        places = self._hidden(task)
        hidden = [one for one in range(places.first, len(clean)) if places.has(one)]
        if hidden:
            parts = list(clean)
            for place in hidden:
                parts[place] = REDACTED
            return tuple(parts) if isinstance(args, tuple) else parts
        return clean

    def _hidden(self, name: str) -> _Places:
        """Which arguments are bound to parameters with secret names."""
        task = self._tasks.get(name)
        known = self._secret.get(name)
        if known is None or known[0] is not task:
            known = self._secret[name] = task, _secret_places(task)
        return known[1]


def _secret_places(task: Any) -> _Places:
    try:
        parameters = list(inspect.signature(task.run).parameters.values())
    except (AttributeError, TypeError, ValueError):
        return _NOWHERE
    places = {place for place, one in enumerate(parameters) if is_secret(one.name)}
    rest = {p for p in places if parameters[p].kind is inspect.Parameter.VAR_POSITIONAL}
    return _Places(min(places), places, min(rest, default=sys.maxsize)) if places else _NOWHERE


def _hook_of(given: Any) -> Callable[[str, Sequence[Any], Mapping[str, Any]], Any] | None:
    if given is None:
        return None
    try:
        hook = symbol_by_name(given) if isinstance(given, str) else given
    except (ImportError, AttributeError, ValueError) as exc:
        raise InvalidSetting(f"delay_audit_redact={given!r} cannot be imported: {exc}") from exc
    if not callable(hook):
        raise InvalidSetting(f"delay_audit_redact={given!r} is nothing that can be called")
    found: Callable[[str, Sequence[Any], Mapping[str, Any]], Any] = hook
    return found


def _place(exc: BaseException) -> str:
    """File and line at which *exc* was raised."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
