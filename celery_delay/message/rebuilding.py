"""The message of an entry that waits, built anew with other arguments or options.

What is stored is taken apart into the arguments and options of the call that it came from, and
sent through Celery once more; so the new message is Celery's own, with its routing,
serialisation and signals.  What nobody wants changed is handed on as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from kombu import serialization
from kombu.compression import decompress
from kombu.exceptions import ContentDisallowed

from celery_delay.domain.entries import Addition, Due, StoredEntry
from celery_delay.message.collection import OPTION, Call, collecting
from celery_delay.message.delays import Delay
from celery_delay.message.envelope import HEADER
from celery_delay.message.runs import spanned

__all__ = ["UNCHANGED", "Wanted", "rebuilt", "wanted"]


class _Unchanged:
    def __repr__(self) -> str:
        return "UNCHANGED"


#: Stands for an argument that was not given; ``None`` is a value.
UNCHANGED: Any = _Unchanged()

#: What a caller wants to be other than it is, by the names of ``apply_async``.
Wanted = Mapping[str, Any]

#: Where a message goes.  With one of them it is routed anew, by Celery's routes.
_ROUTE = frozenset({"queue", "exchange", "routing_key", "exchange_type", "route_name"})
#: Option → the headers that it makes.
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "args": ("argsrepr",),
    "kwargs": ("kwargsrepr",),
    "argsrepr": ("argsrepr",),
    "kwargsrepr": ("kwargsrepr",),
    "expires": ("expires",),
    "time_limit": ("timelimit",),
    "soft_time_limit": ("timelimit",),
    "shadow": ("shadow",),
    "stamped_headers": ("stamped_headers", "stamps"),
}
#: Properties of a message that Celery hands through.
_PROPERTIES = frozenset(
    "priority delivery_mode expiration reply_to correlation_id message_id user_id app_id type"
    " timestamp cluster_id".split()
)
#: How a message is sent.
_SENDING = frozenset(
    "retry retry_policy timeout confirm_timeout mandatory immediate producer connection".split()
)
_OPTIONS = (
    _ROUTE
    | _HEADERS.keys()
    | _PROPERTIES
    | _SENDING
    | {"ignore_result", "link", "link_error", "headers", "serializer", "compression"}
    | {"expires_from"}
)
_WHEN = frozenset({"countdown", "eta", "tz", "window"})
#: What makes the task the one that it is.
_IDENTITY = frozenset(
    "task task_id name root_id parent_id group_id group_index chord chain retries"
    " replaced_task_nesting add_to_parent result_cls task_type session unique_key unique_until"
    " unique_for on_conflict idempotency_key tags namespace".split()
)
#: The headers of Celery's protocol, which ``headers`` must leave alone.
_PROTOCOL = frozenset(
    "lang task id shadow eta expires group group_index retries timelimit root_id parent_id"
    " argsrepr kwargsrepr origin ignore_result replaced_task_nesting stamped_headers stamps"
    " compression periodic_task_name".split()
) | {HEADER}
#: Properties that kombu makes for each message.
_MADE = frozenset({"body_encoding", "delivery_tag", "delivery_info", "expiration"})


def wanted(**given: Any) -> Wanted:
    """What is given of these arguments, checked.

    Raises:
        TypeError, ValueError: about the argument they name.
    """
    changes = {name: value for name, value in given.items() if value is not UNCHANGED}
    stamps = set(changes.get("stamped_headers") or ())
    for name in changes:
        if name in _WHEN:
            raise TypeError(f"{name} says when the task is due: that is what reschedule() changes")
        if name in _IDENTITY:
            raise TypeError(f"{name} cannot be changed: cancel the task, and schedule another one")
        if name not in _OPTIONS and name not in stamps:
            near = get_close_matches(name, _OPTIONS, 1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise TypeError(f"{name} is no option of apply_async that can be changed{hint}")
    if not changes.keys() - _SENDING:
        raise TypeError("say what to change: args=, kwargs=, queue=, priority=, …")
    if not isinstance(changes.get("args") or (), (list, tuple)):
        raise TypeError(f"args={changes['args']!r} must be a list or tuple")
    if not isinstance(changes.get("kwargs") or {}, Mapping):
        raise TypeError(f"kwargs={changes['kwargs']!r} must be a mapping")
    if "expires_from" in changes and (
        changes["expires_from"] not in ("call", "eta")
        or not isinstance(changes.get("expires"), (int, float))
    ):
        raise ValueError("expires_from is 'call' or 'eta', and goes with expires=seconds")
    if own := sorted(_PROTOCOL & set(changes.get("headers") or ())):
        raise ValueError(f"headers={{{own[0]!r}: …}} is a header of Celery's own")
    if missing := sorted(stamps - changes.keys()):
        raise TypeError(f"stamped_headers names {missing[0]!r}, and no such option is given")
    return changes


def rebuilt(app: Any, stored: StoredEntry, changes: Wanted) -> Addition:
    """The same entry with the message that *changes* make of it.  Nothing is stored.

    Raises:
        TypeError: the new arguments do not fit the task, where it is registered here.
        ValueError: the stored message cannot be read here, or the new one is too large.
        kombu.exceptions.EncodeError: the new message cannot be serialised.
        celery.exceptions.QueueNotFound: the queue is none of ``task_queues``.
    """
    delay = Delay(
        Due(stored.eta_ms, False),
        labels=stored.labels,
        expires_from_eta=changes.get("expires_from") == "eta",
    )
    # what the registry says of the task's options was heeded by the first call
    task = (app.tasks if app.autofinalize else app._tasks).get(stored.task)
    part = _taken_apart(app, stored)
    args, kwargs = changes.get("args", part.args), changes.get("kwargs", part.kwargs)
    # Celery writes texts of the arguments that it is given among the properties too
    old = {k: v for k, v in part.options.items() if k.removesuffix("repr") not in changes}
    apart = _ROUTE | {"args", "kwargs", "ignore_result", "expires_from"}
    options = {**old, **{k: v for k, v in changes.items() if k not in apart}}
    if task is not None and changes.keys() & {"args", "kwargs"}:
        args, kwargs = _fitting(task, args or (), kwargs or {}, options["serializer"])
    if "expires" in changes:
        options.pop("expiration", None)
    moved = _ROUTE & changes.keys()
    router = None if moved else _Stay(app, stored)
    with collecting(delay) as collection:
        app.send_task(
            stored.task,
            args,
            kwargs,
            task_id=stored.entry_id.task_id,
            router=router,
            task_type=task,
            add_to_parent=False,
            # so that nobody waits for the result in here; the header says what the task does
            ignore_result=True,
            **{name: changes[name] for name in moved},
            **{**options, "headers": _headers(stored, changes), OPTION: Call(delay)},
        )
    [addition] = collection.additions
    return addition._replace(
        entry_id=stored.entry_id, version=stored.version + 1, labels=stored.labels
    )


class _Parts(NamedTuple):
    """A message as the call that it came from; *options* but for headers and route."""

    args: Any
    kwargs: Any
    options: dict[str, Any]


def _taken_apart(app: Any, stored: StoredEntry) -> _Parts:
    headers: Mapping[str, Any] = stored.headers
    properties: Any = stored.envelope["properties"]
    args, kwargs, embed = _body(app, stored)
    hard, soft = headers.get("timelimit") or (None, None)
    options = {
        **{name: value for name, value in properties.items() if name not in _MADE},
        "time_limit": hard,
        "soft_time_limit": soft,
        "link": embed.get("callbacks"),
        "link_error": embed.get("errbacks"),
        "chain": embed.get("chain"),
        "chord": embed.get("chord"),
        "group_id": headers.get("group"),
        "group_index": headers.get("group_index"),
        "root_id": headers.get("root_id"),
        "parent_id": headers.get("parent_id"),
        "retries": headers.get("retries", 0),
        "shadow": headers.get("shadow"),
        "replaced_task_nesting": headers.get("replaced_task_nesting", 0),
        "serializer": _serializer(app, str(stored.envelope["content-type"])),
        "compression": headers.get("compression"),
    }
    if "expiration" in properties:
        # half a millisecond more, since kombu rounds down
        options["expiration"] = (int(properties["expiration"]) + 0.5) / 1000
    return _Parts(args, kwargs, options)


def _body(app: Any, stored: StoredEntry) -> tuple[Any, Any, Mapping[str, Any]]:
    """The body, decoded as a worker would."""
    envelope: Mapping[str, Any] = stored.envelope
    kind = str(envelope["content-type"])
    try:
        raw = base64.b64decode(envelope["body"])
        if compression := stored.headers.get("compression"):
            raw = decompress(raw, compression)
        accept = serialization.prepare_accept_content(app.conf.accept_content)
        args, kwargs, embed = serialization.loads(
            raw, kind, envelope.get("content-encoding"), accept=accept
        )
    except ContentDisallowed as exc:
        raise ValueError(
            f"the message of {stored.entry_id.task_id} is {kind}, which accept_content does not"
            " have here: update it from an app that accepts it"
        ) from exc
    except Exception as exc:  # each decoder has its own
        raise ValueError(
            f"the message of {stored.entry_id.task_id} cannot be read here: {exc}"
        ) from exc
    return args, kwargs, embed or {}


def _serializer(app: Any, content_type: str) -> str:
    usual: str = app.conf.task_serializer
    if serialization.registry.name_to_type.get(usual) == content_type:
        return usual  # several may make this type
    try:
        name: str = serialization.registry.type_to_name[content_type]
    except KeyError:
        raise ValueError(f"there is no serializer for {content_type} in this process") from None
    return name


def _fitting(task: Any, args: Any, kwargs: Any, serializer: str | None) -> tuple[Any, Any]:
    """The arguments, checked and made ready as ``apply_async`` does."""
    check = getattr(task, "__header__", None) if task.typing else None
    if check is not None:
        check(*args, **kwargs)
    dump = task._dump_pydantic_arguments
    if dump is not None and serializer != "pickle":
        args, kwargs = dump(args, kwargs)
    return args, kwargs


def _headers(stored: StoredEntry, changes: Wanted) -> dict[str, Any]:
    """Those that the new message has whatever Celery would make of the call.

    Names given as ``headers`` take the place of all that are not of Celery's protocol.
    """
    made = {one for name in changes for one in _HEADERS.get(name, ())}
    made |= {HEADER, "compression"}
    kept = {name: value for name, value in stored.headers.items() if name not in made}
    if "headers" in changes:
        kept = {name: value for name, value in kept.items() if name in _PROTOCOL}
        kept |= changes["headers"] or {}
    if "ignore_result" in changes:
        kept["ignore_result"] = changes["ignore_result"]
    return {**kept, **spanned(stored.headers[HEADER])}


class _Stay:
    """A router that sends the message to where it was going."""

    def __init__(self, app: Any, stored: StoredEntry) -> None:
        properties: Any = stored.envelope["properties"]
        self._amqp = app.amqp
        self._way = properties["delivery_info"]
        self._queue: Any = stored.envelope.get("queue")

    def route(self, options: dict[str, Any], *_: Any) -> dict[str, Any]:
        """Celery calls this in place of its own."""
        exchange, key = self._way["exchange"], self._way["routing_key"]
        if not exchange:
            return {**options, "queue": self._declared(key)}
        where = {"exchange": exchange, "routing_key": key, "exchange_type": "topic"}
        if self._queue:
            where["declare"] = [self._declared(self._queue)]
        return {**options, **where}

    def _declared(self, name: str) -> Any:
        return self._amqp.router.expand_destination({"queue": name})["queue"]
