"""The yardstick of the way to RabbitMQ: a loop that publishes, and waits for the confirms."""

from __future__ import annotations

import time

import amqp

__all__ = ["bare_rate", "waiting"]


def bare_rate(port: int, count: int, window: int, body: bytes) -> float:
    """Messages per second that py-amqp gets confirmed, with *window* of them under way."""
    confirmed = 0

    def on_ack(tag: int, _multiple: bool) -> None:
        nonlocal confirmed
        confirmed = max(confirmed, tag)

    with amqp.Connection(f"127.0.0.1:{port}") as connection:
        channel = connection.channel()
        channel.queue_declare("bare", durable=True, auto_delete=False)
        channel.confirm_select()
        channel.events["basic_ack"].add(on_ack)
        begun = time.perf_counter()
        for number in range(1, count + 1):
            channel.basic_publish(amqp.Message(body, delivery_mode=2), "", "bare")
            while number % window == 0 and confirmed < number:
                connection.drain_events(timeout=5)
        seconds = time.perf_counter() - begun
        channel.queue_delete("bare")
    return count / seconds


def waiting(port: int, queue: str) -> int:
    """How many messages are on the queue, made here if it is not there."""
    with amqp.Connection(f"127.0.0.1:{port}") as connection:
        declared = connection.channel().queue_declare(queue, durable=True, auto_delete=False)
        return int(declared.message_count)
