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
from binascii import b2a_base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from os import urandom
from typing import Any

from celery import Celery, signals
from celery._state import _task_stack, get_current_worker_task
from celery.app import task as celery_task
from celery.app.amqp import add_seconds_to_datetime
from celery.app.routes import MapRoute, Router
from celery.utils.time import maybe_make_aware
from kombu.exceptions import EncodeError
from kombu.messaging import Producer
from kombu.utils.json import JSONEncoder

from celery_delay.calling.amqp import AMQP
from celery_delay.domain.clock import to_ms
from celery_delay.domain.entries import Addition, EntryId
from celery_delay.domain.labels import NO_LABELS, Labels
from celery_delay.message.collection import Call, collection
from celery_delay.message.delays import Delay
from celery_delay.message.envelope import check_size
from celery_delay.message.redaction import Texts
from celery_delay.message.reprs import text_of
from celery_delay.message.shape import EMBED, TAILS
from celery_delay.telemetry import tracing

__all__ = ["Recipe", "disabled", "is_plain", "learn", "recipe_for"]

#: Options whose value is part of the shape.  A call with any other takes the full way.
_LITERAL = frozenset(
    "queue exchange routing_key priority time_limit soft_time_limit shadow ignore_result"
    " serializer delivery_mode retry expires".split()
)
#: kombu makes one for each message.
_ENCODER = JSONEncoder()
#: ``json.dumps`` of a text.
_quoted: Callable[[Any], str] = json.encoder.encode_basestring_ascii
#: Parts of the story that differ from call to call.
_VARYING = frozenset({"args", "kwargs", "root_id", "namespace", "tags", "unique"})
#: Shapes remembered by one process; a project that has more builds the rest in full.
_MOST = 2_000

_off: ContextVar[bool] = ContextVar("celery_delay_shapes_off", default=False)


@contextmanager
def disabled() -> Iterator[None]:
    """Take the full way in this context; for comparing the two."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


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
        self._name = task.name
        self._redactor = task.app.delayed.redactor
        self._settings = task.app.delayed.settings
        self._levels = task.app.conf.task_repr_maxlevels
        self._templates = call.shape.templates()
        self._constants = call.addition.values
        paths = call.shape.paths
        #: Where among the values those stand that a call brings; ``None``: nowhere.
        self._places = [paths.index(one) if one in paths else None for one in _BROUGHT]
        facts = call.addition.facts
        self._story = json.dumps(
            {name: value for name, value in facts.items() if name not in _VARYING}
        )[1:-1]

    def addition(
        self,
        args: Sequence[Any] | None,
        kwargs: Mapping[str, Any] | None,
        delay: Delay,
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
        task_id = task_id or _new_id()
        try:
            text = _ENCODER.encode((args, kwargs))[:-1]
            # what is left of the body is in the template: one of three, by the length
            lead = -len(text) % 3
            body = b2a_base64(f"{text}{EMBED[:lead]}".encode(), newline=False).decode()
        except Exception as exc:
            raise EncodeError(exc) from exc  # what kombu makes of it
        check_size(len(body) + len(TAILS[lead]), self._settings)
        celerys = Texts(text_of(args, self._levels), text_of(kwargs, self._levels))
        argsrepr, kwargsrepr = _quoted(celerys.args), _quoted(celerys.kwargs)
        shown = self._shown(args, kwargs, celerys, argsrepr, kwargsrepr)
        expires, expires_ms = "", 0
        if self._expires is not None:
            instant = self._expiry()
            expires, expires_ms = json.dumps(instant.isoformat()), to_ms(instant)
        values = list(self._constants)
        brought = (f'"{body}', argsrepr, kwargsrepr, expires, f'"{self._app.thread_oid}"')
        for place, text in zip(self._places, brought, strict=True):
            if place is not None:
                values[place] = text
        labels = delay.labels
        said = "" if labels is NO_LABELS else _story_of(labels)
        return Addition(
            EntryId(task_id, 0),
            delay.due_of(task_id),
            self._templates[lead],
            tuple(values),
            expires_ms,
            f'{{{self._story}, {shown}"root_id": "{task_id}"{said}}}',
            labels=labels,
            keys=delay.keys,
        )

    def _shown(self, args: Any, kwargs: Any, celerys: Texts, argsrepr: str, kwargsrepr: str) -> str:
        shown = self._redactor.texts(self._name, args, kwargs, celerys)
        if shown.args is celerys.args and shown.kwargs is celerys.kwargs:
            return f'"args": {argsrepr}, "kwargs": {kwargsrepr}, '
        parts = zip(shown._fields, shown, strict=True)
        return "".join(f'"{name}": {json.dumps(text)}, ' for name, text in parts if text)

    def _expiry(self) -> datetime:
        # as celery.app.amqp.AMQP.as_task_v2 counts it
        now = self._app.now()
        expiry: datetime = maybe_make_aware(
            add_seconds_to_datetime(now, self._expires), tz=self._app.timezone
        )
        return expiry


#: The values that a call brings to its shape, in the order of ``Recipe.addition``.
_BROUGHT: tuple[tuple[str, ...], ...] = (
    ("body",),
    ("headers", "argsrepr"),
    ("headers", "kwargsrepr"),
    ("headers", "expires"),
    ("properties", "reply_to"),
)
#: Values that are the same for every call of a shape in one process.
_CONSTANT = {("headers", "origin"), ("properties", "expiration")}


def _new_id() -> str:
    """A random UUID as text, as ``uuid4()`` makes it, at a quarter of the price."""
    text = urandom(16).hex()
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


def recipe_for(task: Any, options: Mapping[str, Any], delay: Delay) -> Recipe | None:
    """The recipe for calls of *task* with *options*; ``None``: take the full way."""
    if delay.expires_from_eta or not is_plain(options.get("task_id", "")):
        return None
    known = _known(task.app)
    key = _key(task, options, delay.labels)
    recipe = known.get(key) if key is not None else None
    return recipe if recipe is not None and _nobody_looks(task) else None


def learn(task: Any, args: Any, kwargs: Any, options: Mapping[str, Any], call: Call) -> None:
    """Remember the shape of *call*, which went the full way, if it can be repeated exactly.

    What the recipe would have made of this very call is compared with what Celery made.
    """
    key = _key(task, options, call.delay.labels)
    known = _known(task.app)
    if call.delay.expires_from_eta or key is None or key in known or len(known) >= _MOST:
        return
    known[key] = None  # until it is shown to be repeatable
    made, shape = call.addition, call.shape
    if made is None or shape is None or not shape.plain_id or not _nobody_looks(task):
        known.pop(key)
        return
    if not shape.tail or not _is_static(task, options):
        return
    if not all(path in _BROUGHT or path in _CONSTANT for path in shape.paths):
        return
    expires = options.get("expires", task._get_exec_options().get("expires"))
    recipe = Recipe(task, call, expires)
    again = recipe.addition(args, kwargs, call.delay, made.entry_id.task_id)
    moving = [i for i, path in enumerate(shape.paths) if path == ("headers", "expires")]
    same = all(
        mine == theirs or position in moving
        for position, (mine, theirs) in enumerate(zip(again.values, made.values, strict=True))
    )
    if same and again.template == made.template and again.facts == made.facts:
        known[key] = recipe


def is_plain(task_id: str | None) -> bool:
    """Whether JSON writes the id as it is; ``envelope.Shape.plain_id`` of the first call."""
    return not task_id or (task_id.isascii() and '"' not in task_id and "\\" not in task_id)


def _known(app: Any) -> dict[Any, Recipe | None]:
    amqp = app.__dict__.get("amqp") or app.amqp
    known: dict[Any, Recipe | None] | None = amqp.__dict__.get("celery_delay_shapes")
    return known if known is not None else amqp.__dict__.setdefault("celery_delay_shapes", {})


def _key(task: Any, options: Mapping[str, Any], labels: Labels) -> Any:
    """What a shape is told by; ``None`` if these options never make one."""
    if not options and labels is NO_LABELS:
        return task.name
    parts: list[Any] = [("", bool, True)] if any(labels) else []
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
    return not (
        signals.before_task_publish.receivers
        or signals.after_task_publish.receivers
        or signals.task_sent.receivers
        or collection() is not None
        or _off.get()
        or tracing.is_on()
        or (_task_stack.stack and get_current_worker_task())
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


def _story_of(labels: Labels) -> str:
    said = labels.encode()
    return f", {said[1:-1]}" if said else ""
