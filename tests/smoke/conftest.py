"""The nodes of the smoke tests.

Containers where a Docker daemon answers, processes elsewhere; the tests are the same.
``DELAY_SMOKE_NODES=docker`` or ``=process`` decides it by hand.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import docker
import pytest
from pytest_celery import (
    CeleryTestSetup,
    RedisContainer,
    RedisTestBackend,
    RedisTestBroker,
)
from pytest_celery.vendors.worker import tasks as ping_tasks

from tests.smoke import app_template, tasks
from tests.smoke.nodes import CeleryBeatContainer, CeleryTestBeat, DelaySetup


def _docker_answers() -> bool:
    with warnings.catch_warnings():
        # without a daemon docker's client leaves its socket to the garbage collector, whose
        # warning would meet whatever test runs then
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            client = docker.from_env(timeout=5)
            try:
                return bool(client.ping())
            finally:
                client.close()
        except docker.errors.DockerException:
            return False
        finally:
            gc.collect()


NODES = os.environ.get("DELAY_SMOKE_NODES") or ("docker" if _docker_answers() else "process")
if NODES == "docker":
    from tests.smoke.docker_nodes import *  # noqa: F403
elif NODES == "process":
    from tests.smoke.process_nodes import *  # noqa: F403
else:
    raise pytest.UsageError(f"DELAY_SMOKE_NODES must be docker or process, not {NODES!r}")


@pytest.fixture(autouse=True)
def app_is_current(request: pytest.FixtureRequest) -> None:
    """pytest-celery leaves a copy of the app current; shared tasks must not use that one."""
    if "celery_setup" in request.fixturenames:
        request.getfixturevalue("celery_setup").app.set_current()


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    return DelaySetup


@pytest.fixture
def default_worker_app_module() -> ModuleType:
    return app_template


@pytest.fixture
def default_worker_tasks() -> set[ModuleType]:
    return {ping_tasks, tasks}


@pytest.fixture
def celery_broker(celery_redis_broker: RedisTestBroker) -> RedisTestBroker:
    """Redis only: other brokers come with the claim path."""
    return celery_redis_broker


@pytest.fixture
def celery_backend(celery_redis_backend: RedisTestBackend) -> RedisTestBackend:
    return celery_redis_backend


@pytest.fixture
def default_redis_broker_command(default_redis_broker_cls: type[RedisContainer]) -> list[str]:
    """A Redis that keeps its data over a restart."""
    return default_redis_broker_cls.command("--appendonly", "yes")


@pytest.fixture
def beat(beat_container: CeleryBeatContainer, celery_setup: Any) -> Iterator[CeleryTestBeat]:
    """A running beat."""
    node = CeleryTestBeat(beat_container, celery_setup.app)
    node.wait_for_log("leads (term")
    yield node
    node.teardown()


@pytest.fixture
def second_beat(
    beat: CeleryTestBeat, second_beat_container: CeleryBeatContainer, celery_setup: Any
) -> Iterator[CeleryTestBeat]:
    """Another one, which stands by."""
    node = CeleryTestBeat(second_beat_container, celery_setup.app)
    node.wait_for_log("beat: Starting...")
    yield node
    node.teardown()
