"""Nodes as containers, built from this repository: for where a Docker daemon answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_celery import DEFAULT_WORKER_CONTAINER_TIMEOUT, DEFAULT_WORKER_VOLUME
from pytest_docker_tools import build, container, fxtr

from tests.smoke.nodes import CeleryBeatContainer

REPOSITORY = Path(__file__).parents[2]

# celery-delay is installed from the repository, as its users get it
celery_base_worker_image = build(
    path=str(REPOSITORY),
    dockerfile="tests/smoke/docker/Dockerfile",
    tag="celery-delay/smoke:latest",
)


def _beat():  # type: ignore[no-untyped-def]
    return container(
        image="{celery_base_worker_image.id}",
        environment=fxtr("default_worker_env"),
        network="{default_pytest_celery_network.name}",
        volumes={"{default_worker_volume.name}": DEFAULT_WORKER_VOLUME},
        wrapper_class=CeleryBeatContainer,
        timeout=DEFAULT_WORKER_CONTAINER_TIMEOUT,
        command=fxtr("beat_command"),
    )


beat_container = _beat()
second_beat_container = _beat()


@pytest.fixture
def beat_command() -> list[str]:
    """What the beats' containers run."""
    return CeleryBeatContainer.command()
