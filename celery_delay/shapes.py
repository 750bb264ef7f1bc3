"""Templates cached per process: a later call of a shape skips the building of the message.

The first call of a shape goes all the way through Celery (``amqp.py``).  Its template is
kept here; the next call with the same task and options only fills in what varies: the body,
the ids, the arguments' text, the expiry.  That is done only where nobody could tell the
difference: no receiver of a publish signal, nothing overridden or patched on the way, no
callbacks, JSON without compression, no current task whose child this would be.  Everything
else takes the full way, every time.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple

from celery import Celery, signals
from celery.app import task as celery_task
from celery.app.amqp import add_seconds_to_datetime
from celery.app.routes import MapRoute, Router
from celery.utils.saferepr import saferepr
from celery.utils.time import maybe_make_aware
from kombu.exceptions import EncodeError
from kombu.messaging import Producer
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid

from celery_delay.amqp import AMQP
from celery_delay.clock import to_ms
from celery_delay.collection import Call, collection
from celery_delay.entries import Addition, Due, EntryId
from celery_delay.envelope import check_size

__all__ = ["Recipe", "disabled", "is_plain", "learn", "recipe_for"]

#: Options whose value is part of the shape.  A call with any other takes the full way.
_LITERAL = frozenset(
    "queue exchange routing_key priority time_limit soft_time_limit shadow ignore_result"
    " serializer delivery_mode retry expires".split()
)
#: What a body's third part is when there are no callbacks, chain or chord.
_NO_EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: Shapes remembered by one process; a project that has more builds the rest in full.
_MOST = 2_000
#: Texts longer than this may be cut by Celery's own repr.
_UNCUT = 900

_off: ContextVar[bool] = ContextVar("celery_delay_shapes_off", default=False)


@contextmanager
def disabled() -> Iterator[None]:
    """Take the full way in this context; for comparing the two."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


class _Values(NamedTuple):
    """What a call brings to its shape, as JSON text."""

    body: str
    argsrepr: str
    kwargsrepr: str
    expires: str
    reply_to: str


class Recipe:
    """How the calls of one shape are made.

    Arguments:
        call: the first call of the shape, which went the full way.
        expires: seconds until the task expires, counted from the call; ``None`` for never.
    """

    def __init__(self, task: Any, call: Call, expires: float | None) -> None:
        assert call.addition is not None
        assert call.shape is not None
        self._app = task.app
        # a task made of a class has no header, and Celery does not check its arguments
        self._check = getattr(task, "__header__", None) if task.typing else None
        self._expires = expires
        self._levels = task.app.conf.task_repr_maxlevels
        self._template = call.shape.template
        self._paths = call.shape.paths
        self._constants = call.addition.values
        facts = call.addition.facts
        self._story = json.dumps(
            {k: v for k, v in facts.items() if k not in ("args", "kwargs", "root_id")}
        )[1:-1]

    def addition(
        self,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        due: Due,
        task_id: str | None,
    ) -> Addition:
        """The entry of one call.

        Raises:
            TypeError: the arguments do not fit the task, or are no list and mapping.
            kombu.exceptions.EncodeError: they are not JSON.
        ValueError: they are larger than ``delay_max_payload``.
        """
        args, kwargs = args or (), kwargs or {}
        if self._check is not None:
            self._check(*args, **kwargs)
        task_id = task_id or uuid()
        values, expires_ms = self._values(args, kwargs)
        return Addition(
            EntryId(task_id, 0),
            due,
            self._template,
            tuple(
                _SOURCES[path](values) if path in _SOURCES else constant
                for path, constant in zip(self._paths, self._constants, strict=True)
            ),
            expires_ms,
            f'{{{self._story}, "args": {values.argsrepr}, "kwargs": {values.kwargsrepr},'
            f' "root_id": "{task_id}"}}',
        )

    def _values(self, args: Any, kwargs: Any) -> tuple[_Values, int]:
        try:
            body = b64encode(dumps((args, kwargs, _NO_EMBED)).encode()).decode()
        except Exception as exc:
            raise EncodeError(exc) from exc  # what kombu makes of it
        check_size(len(body), self._app.delayed.settings)
        expires, expires_ms = "", 0
        if self._expires is not None:
            instant = self._expiry()
            expires, expires_ms = json.dumps(instant.isoformat()), to_ms(instant)
        return (
            _Values(
                f'"{body}"',
                json.dumps(_text(args, self._levels)),
                json.dumps(_text(kwargs, self._levels)),
                expires,
                f'"{self._app.thread_oid}"',
            ),
            expires_ms,
        )

    def _expiry(self) -> datetime:
        # as celery.app.amqp.AMQP.as_task_v2 counts it
        now = self._app.now()
        expiry: datetime = maybe_make_aware(
            add_seconds_to_datetime(now, self._expires), tz=self._app.timezone
        )
        return expiry


#: Where the values come from that differ within a shape; all others are constant.
_SOURCES: Mapping[tuple[str, ...], Callable[[_Values], str]] = {
    ("body",): lambda values: values.body,
    ("headers", "argsrepr"): lambda values: values.argsrepr,
    ("headers", "kwargsrepr"): lambda values: values.kwargsrepr,
    ("headers", "expires"): lambda values: values.expires,
    ("properties", "reply_to"): lambda values: values.reply_to,
}
#: Values that are the same for every call of a shape in one process.
_CONSTANT = {("headers", "origin"), ("properties", "expiration")}


def recipe_for(task: Any, options: Mapping[str, Any]) -> Recipe | None:
    """The recipe for calls of *task* with *options*; ``None``: take the full way."""
    if not is_plain(options.get("task_id", "")):
        return None
    known = _known(task.app)
    key = _key(task, options)
    recipe = known.get(key) if key is not None else None
    return recipe if recipe is not None and _nobody_looks(task) else None


def learn(task: Any, args: Any, kwargs: Any, options: Mapping[str, Any], call: Call) -> None:
    """Remember the shape of *call*, which went the full way, if it can be repeated exactly.

    What the recipe would have made of this very call is compared with what Celery made.
    """
    key = _key(task, options)
    known = _known(task.app)
    if key is None or key in known or len(known) >= _MOST:
        return
    known[key] = None  # until it is shown to be repeatable
    made, shape = call.addition, call.shape
    if made is None or shape is None or not shape.plain_id or not _nobody_looks(task):
        known.pop(key)
        return
    if not _is_static(task, options):
        return
    if not all(path in _SOURCES or path in _CONSTANT for path in shape.paths):
        return
    expires = options.get("expires", task._get_exec_options().get("expires"))
    recipe = Recipe(task, call, expires)
    again = recipe.addition(args, kwargs, made.due, made.entry_id.task_id)
    moving = [i for i, path in enumerate(shape.paths) if path == ("headers", "expires")]
    same = all(
        mine == theirs or position in moving
        for position, (mine, theirs) in enumerate(zip(again.values, made.values, strict=True))
    )
    if same and again.facts == made.facts:
        known[key] = recipe


def is_plain(task_id: str | None) -> bool:
    """Whether JSON writes the id as it is; ``envelope.Shape.plain_id`` of the first call."""
    return not task_id or (task_id.isascii() and '"' not in task_id and "\\" not in task_id)


def _known(app: Any) -> dict[Any, Recipe | None]:
    known: dict[Any, Recipe | None] = app.amqp.__dict__.setdefault("celery_delay_shapes", {})
    return known


def _key(task: Any, options: Mapping[str, Any]) -> Any:
    """What a shape is told by; ``None`` if these options never make one."""
    if not options:
        return task.name
    parts = []
    for name, value in options.items():
        if name == "task_id":
            continue
        if name not in _LITERAL or type(value) not in (str, int, float, bool, type(None)):
            return None
        # 1, 1.0 and True are one key otherwise, and three JSON texts
        parts.append((name, type(value), value))
    parts.sort(key=lambda part: part[0])
    return (task.name, *parts)


def _nobody_looks(task: Any) -> bool:
    """Whether nothing takes part in the sending but what took part in the first call."""
    app = task.app
    return not (
        signals.before_task_publish.receivers
        or signals.after_task_publish.receivers
        or signals.task_sent.receivers
        or collection() is not None
        or _off.get()
        or app.current_worker_task
    )


def _is_static(task: Any, options: Mapping[str, Any]) -> bool:
    """Whether task, app and libraries are such that a template makes the same message."""
    app = task.app
    conf, amqp, kind = app.conf, app.amqp, type(task)
    given = {**task._get_exec_options(), **options}
    expires = given.get("expires")
    return (
        type(amqp) is AMQP
        and kind.apply_async.__module__ == celery_task.__name__
        and kind.shadow_name is celery_task.Task.shadow_name
        and task._dump_pydantic_arguments is None
        and not task.__v2_compat__
        and Celery.send_task.__module__ == "celery.app.base"
        and type(app).send_task is Celery.send_task
        and Producer.publish.__module__ == "kombu.messaging"
        and type(amqp.router) is Router
        and all(isinstance(route, MapRoute) for route in amqp.routes)
        and (given.get("serializer") or conf.task_serializer) == "json"
        and not (given.get("compression") or conf.task_compression)
        and not conf.task_send_sent_event
        and not (set(given) - _LITERAL - {"task_id", "compression", "immediate", "mandatory"})
        and (expires is None or (type(expires) in (int, float) and expires >= 0))
        # with Redis the result's channel is subscribed to when somebody waits for it
        and type(app.backend).on_task_call.__module__
        in ("celery.backends.base", "celery.backends.redis")
    )


def _text(value: Any, levels: int) -> str:
    """``saferepr(value)`` as Celery makes it; a short way for flat arguments, the usual ones."""
    if type(value) in (tuple, list):
        texts = [_scalar(one) for one in value]
        if None not in texts:
            inner = ", ".join(texts)  # type: ignore[arg-type]
            if len(inner) <= _UNCUT:
                if type(value) is list:
                    return f"[{inner}]"
                return f"({inner},)" if len(texts) == 1 else f"({inner})"
    elif type(value) is dict:
        pairs = []
        for key, one in value.items():
            name, text = _scalar(key), _scalar(one)
            if name is None or text is None:
                break
            pairs.append(f"{name}: {text}")
        else:
            inner = ", ".join(pairs)
            if len(inner) <= _UNCUT:
                return f"{{{inner}}}"
    return str(saferepr(value, AMQP.argsrepr_maxsize, maxlevels=levels))


def _scalar(value: Any) -> str | None:
    kind = type(value)
    if kind is str:
        quoted = value.replace("'", "\\'")
        return f"'{quoted}'"
    if kind in (int, float, bool, type(None)):
        return str(value)
    return None
