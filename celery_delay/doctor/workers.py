"""The workers, where ``delay_guard`` needs their help."""

from __future__ import annotations

from collections.abc import Iterator

from celery_delay.doctor.checks import NOTE, OK, PROBLEM, Check
from celery_delay.doctor.visit import Visit
from celery_delay.worker.fleet import Workers, name_of

__all__ = ["guard"]


def guard(visit: Visit) -> Iterator[Check]:
    """Whether the workers report what they begin, and what is handed off is watched."""
    delayed = visit.delayed
    settings = delayed.settings
    if not settings.tracks:
        return
    found = Workers(delayed.app, delayed.shards, delayed.clock).strangers()
    strangers = sorted({f"{node} ({queue})" for queue, nodes in found.items() for node in nodes})
    if strangers:
        yield Check(
            "guard", PROBLEM,
            "workers take messages and do not report what they begin, so what gets lost of these"
            f" queues is not sent again, and copies are not dropped: {', '.join(strangers)}",
            f'install celery-delay there, set delay_guard = "{settings.guard}", restart them',
        )  # fmt: skip
        return
    names = sorted({name_of(one) for shard in delayed.shards for one in shard.reporting_workers()})
    if not names:
        yield Check(
            "guard", NOTE,
            "no worker reports what it begins: nothing that gets lost is sent again",
            "start workers of this app; they answer a second after they are ready",
        )  # fmt: skip
    elif not delayed.moves():
        yield Check(
            "guard", NOTE,
            "what beats publish is not watched, for this broker does not tell what workers have",
            "use acks_late, with which RabbitMQ loses nothing; the claims of delay_guard ="
            ' "guard" work with each broker',
        )  # fmt: skip
    else:
        yield Check("guard", OK, f"reporting: {', '.join(names)}")
