"""The names of the Redis keys."""

from __future__ import annotations

from celery import Celery

from celery_delay import CeleryDelay


def test_the_brokers_prefix_comes_first_in_each_key() -> None:
    # Given a project that may only touch keys of its own, as by the ACL rule ~shop:*
    app = Celery("shop", broker="redis://")
    app.conf.broker_transport_options = {"global_keyprefix": "shop:"}

    [keys] = CeleryDelay(app).shard_keys

    assert keys.lease == "shop:{celery-delay:0}:lease"
    assert all(key.startswith("shop:{celery-delay:0}:") for key in keys.all())
