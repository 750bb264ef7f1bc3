"""What a beat serves at ``delay_http``, asked for and read."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.processes import CeleryProcess

__all__ = ["Scrape", "get", "port_of", "samples", "scrape"]

Scrape = dict[tuple[str, frozenset[tuple[str, str]]], float]


def port_of(beat: CeleryProcess) -> int:
    """The port that a beat says it serves at."""
    return int(beat.wait_for_log(r"metrics and health at http://127\.0\.0\.1:(\d+)/")[1])


def get(port: int, path: str, timeout: float = 5.0) -> tuple[int, str]:
    """Status and text of an answer."""
    address = f"http://127.0.0.1:{port}{path}"
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()


def read(text: str) -> Scrape:
    """Samples by name and labels."""
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def scrape(port: int) -> dict[str, float]:
    """Samples by how they are written: ``name{a="b",c="d"}``, the labels sorted."""
    status, text = get(port, "/metrics")
    assert status == 200, text
    return samples(text)


def samples(text: str) -> dict[str, float]:
    """The same of a page."""
    found = {}
    for (name, labels), value in read(text).items():
        inner = ",".join(f'{key}="{value}"' for key, value in sorted(labels))
        found[re.sub(r"\{\}$", "", f"{name}{{{inner}}}")] = value
    return found
