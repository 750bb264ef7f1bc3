"""Messages that a beat publishes itself: what gets to RabbitMQ, and what is refused there.

No beat runs here: what a leading one does is done in the test's own process.
"""

from __future__ import annotations

import itertools
import socket
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES

from celery_delay import CeleryDelay
from celery_delay.broker.publisher import BrokerPublisher
from celery_delay.embedded import EmbeddedRedis
from celery_delay.exceptions import StoreUnavailable
from celery_delay.message.envelope import HEADER
from celery_delay.services.handoff import ACK_WINDOW
from celery_delay.store.redis import RedisStore
from tests import stock_amqp
from tests.brokers import MAX_MESSAGE_SIZE, OwnRabbitMQ, taken
from tests.projects import make_app, publish
from tests.transports import Channel

#: What differs between any two processes, or is ours.
OURS = {"origin", HEADER}


@pytest.fixture
def name() -> str:
    """A queue of our own."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def app(
    rabbitmq: OwnRabbitMQ, redis_server: EmbeddedRedis, name: str
) -> Iterator[Callable[..., Celery]]:
    """Make an app on RabbitMQ with its store in Redis."""
    made: list[Celery] = []

    def make(url: str = rabbitmq.url, **conf: Any) -> Celery:
        store = redis_server.tcp_url
        made.append(
            make_app(
                url, result_backend=store, delay_redis_url=store,
                **{"task_default_queue": name, **conf},
            )
        )  # fmt: skip
        return made[-1]

    yield make
    for one in made:
        one.close()


def send(app: Celery, *ids: str, countdown: float = 0.0, **options: Any) -> Any:
    """Schedule a task for each id; the last one's result."""
    result = None
    for task_id in ids:
        result = app.delayed.send_task(
            "any", [task_id], task_id=task_id, countdown=countdown, **options
        )
    return result


def ids_on(url: str, queue: str) -> list[str]:
    return [one.headers["id"] for one in taken(url, queue)]


def reason(app: Celery, task_id: str) -> str:
    """Why it is in quarantine."""
    return str(app.delayed.quarantined()[task_id])


def test_no_more_than_a_window_is_sent_before_it_is_acked(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = app()
    send(site, *(f"t{number}" for number in range(3 * ACK_WINDOW)))

    def away(*_: Any) -> int:
        raise StoreUnavailable("away")

    monkeypatch.setattr(RedisStore, "ack", away)
    publisher = BrokerPublisher(site, site.delayed.settings, site.delayed.clock)
    with closing(publisher), pytest.raises(StoreUnavailable):
        publish(site, publisher=publisher)

    sent = ids_on(rabbitmq.url, name)
    assert 0 < len(sent) == len(set(sent)) <= ACK_WINDOW


# --- the message ----------------------------------------------------------------------------


@pytest.mark.parametrize("updated", [False, True])
def test_the_message_is_the_one_that_a_stock_app_publishes(
    rabbitmq: OwnRabbitMQ, redis_server: EmbeddedRedis, updated: bool
) -> None:
    # Given what a stock app, in another process, puts onto the queues
    stock_amqp.publish_all(rabbitmq.url)
    expected = _on_all_queues(rabbitmq.url)
    assert expected.keys() == {one.replace(" ", "-") for one in stock_amqp.CALLS}

    # When the same calls are delayed, and published when they are due
    app = stock_amqp.make_app(rabbitmq.url)
    app.conf.delay_redis_url = redis_server.tcp_url
    app.conf.accept_content = ["json", "pickle", "yaml"]
    CeleryDelay(app)
    last = None
    for name, call in stock_amqp.CALLS.items():
        last = stock_amqp.apply(app, name, "apply_delayed", countdown=60)
        if updated:
            # and built anew out of what is stored, at first for something else
            args = call.get("args", (1,))
            assert last.update(args=("other",), kwargs=None, shadow="other")
            assert last.update(args=args, kwargs={"y": 2}, shadow=call.get("shadow"))
    publish(app, last)
    app.close()

    # Then message by message nothing differs
    assert app.delayed.quarantined() == {}
    got = _on_all_queues(rabbitmq.url)
    assert got.keys() == expected.keys()
    for name, message in got.items():
        assert message == expected[name], name


def _on_all_queues(url: str) -> dict[str, Any]:
    messages = [one for queue in stock_amqp.QUEUES for one in taken(url, queue.name)]
    return {one.headers["id"]: _comparable(one) for one in messages}


def _comparable(message: Any) -> dict[str, Any]:
    headers = {name: value for name, value in message.headers.items() if name not in OURS}
    properties = {
        name: value for name, value in message.properties.items() if name != "application_headers"
    }
    if properties.get("reply_to") != "somewhere":
        properties.pop("reply_to", None)  # the process' own
    if headers.get("expires"):
        headers["expires"] = "counted from the call"
    if "expiration" in properties and properties["expiration"] != "90000":
        # what is left of it now: some seconds are gone
        left = float(properties.pop("expiration"))
        properties["expires in h"] = round(left / 3_600_000, 1)
    return {
        "headers": headers,
        "properties": properties,
        "body": message.body,
        "exchange": message.delivery_info["exchange"],
        "routing_key": message.delivery_info["routing_key"],
    }


def test_what_is_left_of_the_expiry_counts_and_not_what_was_left_at_the_call(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = app()
    send(site, "t", expires=100)
    clock = site.delayed.clock
    publisher = BrokerPublisher(site, site.delayed.settings, _Later(clock, 60))

    publish(site, publisher=publisher)

    publisher.close()
    [message] = taken(rabbitmq.url, name)
    assert 30_000 < int(message.properties["expiration"]) <= 40_000


def test_an_expiry_that_is_too_far_for_rabbitmq_is_left_to_the_worker(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    site = app()
    send(site, "t", expires=60 * 24 * 3600)

    publish(site)

    [message] = taken(rabbitmq.url, name)
    assert "expiration" not in message.properties
    assert message.headers["expires"]


class _Later:
    """A clock whose wall shows a later time."""

    def __init__(self, clock: Any, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    def wall(self) -> float:
        return float(self._clock.wall()) + self._seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._clock, name)


# --- refused --------------------------------------------------------------------------------


def others(count: int) -> list[str]:
    return [f"other-{number}" for number in range(count)]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"exchange": "no-such-exchange", "routing_key": "x"}, "no exchange 'no-such-exchange'"),
        ({"exchange": "amq.topic", "routing_key": "k"}, "no queue is bound to 'amq.topic' for 'k'"),
        ({"user_id": "somebody"}, "user_id property set to 'somebody'"),
        ({"headers": {"x": uuid.UUID(int=1)}}, "cannot be written as an AMQP message"),
        ({"headers": {"x": 2**70}}, "written as an AMQP message"),
        ({"correlation_id": "x" * 300}, "cannot be written as an AMQP message"),
    ],
    ids=["missing exchange", "unbound", "user id", "header", "number", "property"],
)
def test_a_message_that_is_refused_is_kept_with_its_error_and_holds_up_nobody(
    app: Callable[..., Celery],
    rabbitmq: OwnRabbitMQ,
    name: str,
    options: dict[str, Any],
    why: str,
) -> None:
    # Given one message that RabbitMQ refuses in the middle of many
    site = app()
    send(site, *others(60)[:30])
    send(site, "bad", **options)
    send(site, *others(60)[30:])

    publisher = BrokerPublisher(site, site.delayed.settings, site.delayed.clock)
    publish(site, publisher=publisher)
    publish(site, publisher=publisher)  # a queue that had been deleted would be there by now
    publisher.close()

    assert sorted(ids_on(rabbitmq.url, name)) == sorted(others(60))
    assert why in reason(site, "bad")
    assert site.delayed.get("bad") is None


def test_a_message_bigger_than_the_broker_takes_is_refused_by_itself(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    site = app()
    send(site, *others(15))
    site.delayed.send_task("any", ["x" * MAX_MESSAGE_SIZE], task_id="bad", countdown=0)
    send(site, "small")

    publish(site)

    assert sorted(ids_on(rabbitmq.url, name)) == sorted([*others(15), "small"])
    assert "larger than configured max size" in reason(site, "bad")


def test_an_exchange_that_the_user_may_not_write_to_refuses_its_own_messages_only(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    # Given a user who may write to all exchanges but one
    with Connection(rabbitmq.url) as connection:
        connection.channel().exchange_declare("forbidden", "fanout", durable=True)
    user = f"clerk-{name}"
    rabbitmq.control("add_user", user, "secret")
    rabbitmq.control("set_permissions", user, ".*", "^(?!forbidden).*", ".*")
    site = app(rabbitmq.url.replace("guest:guest", f"{user}:secret"))
    send(site, *others(5))
    send(site, "bad-1", "bad-2", exchange="forbidden", routing_key="any")
    send(site, *others(10)[5:])

    publish(site)

    assert sorted(ids_on(rabbitmq.url, name)) == sorted(others(10))
    for bad in ("bad-1", "bad-2"):
        assert "ACCESS_REFUSED" in reason(site, bad)


def test_a_queue_that_must_not_be_made_is_not_made(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    # Given a beat that does not know a producer's queue
    producer = app(task_create_missing_queues=True)
    beat = app(task_queues={name: {"exchange": name}}, task_create_missing_queues=False)
    send(producer, "bad", queue=f"{name}-nowhere")
    send(producer, "good")

    publish(beat)

    assert ids_on(rabbitmq.url, name) == ["good"]
    assert f"no queue is bound to '' for '{name}-nowhere'" in reason(beat, "bad")


def test_what_was_refused_is_sent_when_it_is_released(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    # Given a message that came back
    site = app()
    send(site, "late", exchange=f"{name}-x", routing_key="k")
    publish(site)
    assert "NOT_FOUND" in reason(site, "late")
    # and the exchange that was missing
    with Connection(rabbitmq.url) as connection:
        channel = connection.channel()
        channel.exchange_declare(f"{name}-x", "direct", durable=True, auto_delete=False)
        channel.queue_declare(name, durable=True, auto_delete=False)
        channel.queue_bind(name, f"{name}-x", "k")

    assert site.delayed.release("late")["late"]
    publish(site)

    assert ids_on(rabbitmq.url, name) == ["late"]
    assert site.delayed.quarantined() == {}


def test_a_message_that_was_refused_is_mended_and_released(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    site = app()
    send(site, "astray", exchange=f"{name}-none", routing_key="k")
    site.delayed.send_task("any", ["x" * MAX_MESSAGE_SIZE], task_id="big", countdown=0)
    publish(site)
    assert sorted(site.delayed.quarantined()) == ["astray", "big"]

    assert site.delayed.update("astray", queue=name)
    assert site.delayed.update("big", args=["small"])

    publish(site)
    assert ids_on(rabbitmq.url, name) == []
    assert all(site.delayed.release("astray", "big").values())
    publish(site)
    assert sorted(ids_on(rabbitmq.url, name)) == ["astray", "big"]
    assert site.delayed.quarantined() == {}


# --- declined, and queues of others ----------------------------------------------------------


def test_a_full_queue_declines_and_is_tried_again_while_others_go_on(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    # Given a queue that takes two messages
    full = f"{name}-full"
    bound = {"x-max-length": 2, "x-overflow": "reject-publish"}
    site = app(task_queues={
        name: {"exchange": name}, full: {"exchange": full, "queue_arguments": bound},
    })  # fmt: skip
    send(site, "a", "b", "c", "d", queue=full)
    send(site, *others(5))

    publish(site)

    # Then two wait, and are not refused
    assert sorted(ids_on(rabbitmq.url, name)) == sorted(others(5))
    waiting = {one.entry_id.task_id for one in site.delayed.list()}
    assert len(waiting) == 2
    assert site.delayed.quarantined() == {}
    # and come when there is room
    first = ids_on(rabbitmq.url, full)
    publish(site)
    assert {*first, *ids_on(rabbitmq.url, full)} == {"a", "b", "c", "d"}
    assert site.delayed.count() == 0


def test_a_queue_that_was_made_with_other_arguments_gets_its_messages(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    with Connection(rabbitmq.url) as connection:
        channel = connection.channel()
        channel.queue_declare(
            name, durable=True, auto_delete=False, arguments={"x-max-length": 5000}
        )
    site = app()
    send(site, "a", "b")

    publish(site)

    assert ids_on(rabbitmq.url, name) == ["a", "b"]


def test_a_user_who_may_declare_nothing_publishes_to_what_is_there(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    with Connection(rabbitmq.url) as connection:
        connection.channel().queue_declare(name, durable=True, auto_delete=False)
    rabbitmq.control("add_user", name, "secret")
    rabbitmq.control("set_permissions", name, "^$", r"^amq\.default$", "^$")
    site = app(rabbitmq.url.replace("guest:guest", f"{name}:secret"))
    send(site, "a", "b")

    publish(site)

    assert ids_on(rabbitmq.url, name) == ["a", "b"]


def test_a_queue_that_was_deleted_under_us_is_made_again(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    # Given a publisher that has declared the queue
    site = app()
    publisher = BrokerPublisher(site, site.delayed.settings, site.delayed.clock)
    send(site, "a")
    publish(site, publisher=publisher)
    with Connection(rabbitmq.url) as connection:
        connection.channel().queue_delete(name)
    send(site, "b")

    publish(site, publisher=publisher)  # it comes back …
    publish(site, publisher=publisher)

    publisher.close()
    assert ids_on(rabbitmq.url, name) == ["b"]
    assert site.delayed.quarantined() == {}


# --- the broker ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("guest:guest", "guest:wrong"), "ACCESS_REFUSED"),
        (("5672//", "5672/nowhere"), "no access to this vhost|NOT_ALLOWED|not found"),
        (("127.0.0.1", "127.0.0.2"), "refused"),
    ],
    ids=["password", "vhost", "address"],
)
def test_a_broker_that_lets_nobody_in_is_named_and_the_tasks_wait(
    app: Callable[..., Celery],
    rabbitmq: OwnRabbitMQ,
    caplog: pytest.LogCaptureFixture,
    wrong: tuple[str, str],
    says: str,
) -> None:
    url = rabbitmq.url.replace(":5672", ":5672")
    old, new = wrong
    url = (
        url.replace(f":{rabbitmq.port}//", f":{rabbitmq.port}/nowhere")
        if "vhost" in says
        else (url.replace(old, new))
    )
    site = app(url)
    send(site, "a")

    publish(site)

    [failing] = [one for one in caplog.records if getattr(one, "event", "") == "broker_failing"]
    text = failing.getMessage()
    assert any(part in text for part in says.split("|")), text
    assert "guest:" not in text.replace("guest:**", "")
    assert [one.entry_id.task_id for one in site.delayed.list()] == ["a"]


def test_a_list_of_brokers_is_tried_through(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    # Given one that refuses, and two that take connections and say nothing
    with ExitStack() as servers:
        silent = [servers.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [1, *(one.getsockname()[1] for one in silent)]
        urls = [f"amqp://guest:guest@127.0.0.1:{port}//" for port in ports]
        site = app(";".join([*urls, rabbitmq.url]), delay_confirm_timeout=0.3)
        send(site, "a")
        publisher = BrokerPublisher(site, site.delayed.settings, site.delayed.clock)

        assert publisher.connect() == ""
        publish(site, publisher=publisher)

        publisher.close()
    assert ids_on(rabbitmq.url, name) == ["a"]


def test_rabbitmq_by_tls(app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str) -> None:
    verified = {"ca_certs": str(rabbitmq.ca), "cert_reqs": ssl.CERT_REQUIRED}
    site = app(rabbitmq.tls_url, broker_use_ssl=verified)
    send(site, *others(50))
    send(site, "bad", exchange="no-such-exchange", routing_key="x")

    publish(site)

    assert len(ids_on(rabbitmq.url, name)) == 50
    assert "NOT_FOUND" in reason(site, "bad")


def test_tasks_are_scheduled_while_the_broker_is_away(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    away = app("amqp://guest:guest@127.0.0.1:1//", task_send_sent_event=True)

    begun = time.monotonic()
    result = send(away, *others(20), countdown=60)

    assert time.monotonic() - begun < 5, "no call waits for the broker"
    assert away.delayed.count() == 20
    assert away.delayed.cancel("other-0")
    publish(app(), result)
    assert sorted(ids_on(rabbitmq.url, name)) == sorted(others(20)[1:])


def test_confirms_that_the_app_asks_for_itself_do_no_harm(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    site = app(
        broker_transport_options={"confirm_publish": True, "confirm_timeout": 5, "read_timeout": 9}
    )
    send(site, *others(30))

    publish(site)

    assert len(ids_on(rabbitmq.url, name)) == 30


def test_many_messages_are_under_way_at_once_but_never_more_than_the_window(
    app: Callable[..., Celery], rabbitmq: OwnRabbitMQ, name: str
) -> None:
    site = app()
    numbers = itertools.count()
    send(site, *[f"t-{next(numbers)}" for _ in range(250)])

    publish(site)

    assert len(ids_on(rabbitmq.url, name)) == 250
    assert site.delayed.count() == 0
    with redis.Redis.from_url(site.conf.delay_redis_url) as client:
        keys = site.delayed.shard_keys[0]
        assert client.hlen(keys.claimed) == client.zcard(keys.claims) == 0


# --- other transports, by contract -----------------------------------------------------------


@pytest.fixture
def store(redis_server: EmbeddedRedis) -> str:
    return redis_server.tcp_url


@pytest.mark.parametrize("scheme", ["memory", "filesystem"])
def test_transports_that_know_no_confirms_get_the_same_message(
    store: str, name: str, tmp_path: Path, scheme: str
) -> None:
    folders = dict.fromkeys(("data_folder_in", "data_folder_out"), str(tmp_path / "data"))
    options = {**folders, "control_folder": str(tmp_path / "control")}
    site = make_app(
        f"{scheme}://", result_backend=store, delay_redis_url=store, task_default_queue=name,
        broker_transport_options=options if scheme == "filesystem" else {},
    )  # fmt: skip
    (tmp_path / "data").mkdir()
    result = send(site, "a", "b", countdown=60, priority=3, expires=600)
    # what a stock app would have sent
    site.send_task("any", ["a"], task_id="stock", priority=3, expires=600)

    publish(site, result)

    with site.connection_for_read() as connection, connection.SimpleQueue(name) as queue:
        stock, *ours = [queue.get(timeout=5) for _ in range(3)]
        assert sorted(one.headers["id"] for one in ours) == ["a", "b"]
        for one in ours:
            assert one.headers.keys() - {HEADER} == stock.headers.keys()
            assert one.properties.keys() == stock.properties.keys()
            assert one.delivery_info == stock.delivery_info
            assert one.payload[0] == [one.headers["id"]]
            one.ack()
        stock.ack()
    site.close()


def test_an_error_of_the_service_that_nobody_knows_ends_as_the_messages_own(
    store: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a service that does not take one message
    monkeypatch.setitem(TRANSPORT_ALIASES, "web", "tests.transports:Transport")
    for attribute, empty in (("queues", {}), ("refuses", {"bad"}), ("asked", [])):
        monkeypatch.setattr(Channel, attribute, empty)
    site = make_app("web://", result_backend=store, delay_redis_url=store, task_default_queue=name)
    send(site, "a", "bad", "b")
    now = site.delayed.now_ms()

    # When it is tried again each time that its claim has ended
    for attempt in range(6):
        publish(site, now + attempt * 10_000)

    # Then the others go out once, and it is kept back with the service's error
    assert sorted(one["headers"]["id"] for one in Channel.queues[name]) == ["a", "b"]
    assert 2 <= Channel.asked.count("bad") <= 4
    assert "APIError: InvalidMessageContents" in reason(site, "bad")
    site.close()
