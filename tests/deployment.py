"""What the files in ``example_project/deploy`` say: commands, environment, probes."""

from __future__ import annotations

import configparser
import shlex
from pathlib import Path
from typing import Any

import yaml

__all__ = ["DEPLOY", "compose", "manifests", "unit", "words_of"]

DEPLOY = Path(__file__).parents[1] / "example_project/deploy"


def compose() -> dict[str, Any]:
    """The services of docker-compose.yml by name, with what they share put in."""
    document: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
    return document


def manifests() -> list[tuple[str, dict[str, Any]]]:
    """File and document of each Kubernetes manifest."""
    return [
        (path.name, document)
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
    ]


def unit(name: str) -> dict[str, dict[str, str]]:
    """The sections of a systemd unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / name)
    return {section: dict(parser[section]) for section in parser.sections()}


def words_of(name: str) -> list[str]:
    """What a unit's ``ExecStart`` runs, behind ``celery -A shop``."""
    words = shlex.split(unit(name)["Service"]["ExecStart"])
    assert words[:3] == ["/opt/shop/venv/bin/celery", "-A", "shop"], name
    return words[3:]
