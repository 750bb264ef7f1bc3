"""A URL from an entry of Django's DATABASES."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from celery_delay.django import database_url
from celery_delay.exceptions import InvalidSetting

POSTGRES = "django.db.backends.postgresql"
MYSQL = "django.db.backends.mysql"


def url_of(engine: str, **database: Any) -> Any:
    return make_url(database_url({"ENGINE": engine, **database}))


def test_a_file() -> None:
    url = url_of("django.db.backends.sqlite3", NAME=Path("/srv/shop/db.sqlite3"))

    assert url.render_as_string() == "sqlite:////srv/shop/db.sqlite3"


def test_a_server() -> None:
    url = url_of(
        POSTGRES,
        NAME="shop",
        USER="shop@eu",
        PASSWORD="p:s/w@r?d%",
        HOST="db.example.org",
        PORT="5433",
        OPTIONS={"sslmode": "verify-full", "pool": True, "isolation_level": 2},
        CONN_MAX_AGE=60,
    )

    assert (url.username, url.password) == ("shop@eu", "p:s/w@r?d%")
    assert (url.host, url.port, url.database) == ("db.example.org", 5433, "shop")
    assert dict(url.query) == {"sslmode": "verify-full"}


@pytest.mark.parametrize(
    ("engine", "query"),
    [(POSTGRES, {"host": "/var/run/db"}), (MYSQL, {"unix_socket": "/var/run/db"})],
)
def test_a_server_behind_a_socket(engine: str, query: dict[str, str]) -> None:
    url = url_of(engine, NAME="shop", USER="shop", HOST="/var/run/db")

    assert (url.host, url.port, dict(url.query)) == (None, None, query)


def test_what_django_leaves_empty() -> None:
    url = url_of(POSTGRES, NAME="shop", USER="", PASSWORD="", HOST="", PORT="", OPTIONS={})

    assert url.render_as_string().endswith(":///shop")


@pytest.mark.parametrize(
    ("engine", "installed", "driver"),
    [
        (MYSQL, {"MySQLdb", "pymysql"}, "mysql+mysqldb"),
        (MYSQL, {"pymysql"}, "mysql+pymysql"),
        (POSTGRES, {"psycopg", "psycopg2"}, "postgresql+psycopg"),
        (POSTGRES, {"psycopg2"}, "postgresql+psycopg2"),
        (POSTGRES, set(), "postgresql+psycopg"),
    ],
)
def test_the_driver_is_the_one_that_is_installed(
    engine: str, installed: set[str], driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_delay.django.find_spec", lambda name: name in installed)

    url = url_of(engine, NAME="shop", HOST="::1")

    assert (url.drivername, url.host) == (driver, "::1")


def test_certificates() -> None:
    url = url_of(MYSQL, NAME="shop", OPTIONS={"ssl": {"ca": "/etc/ca.pem"}, "charset": "utf8mb4"})

    assert dict(url.query) == {"ssl_ca": "/etc/ca.pem"}


@pytest.mark.parametrize(
    "options", [{"assume_role": "owner"}, {"passwd_callback": lambda: "x"}], ids=" ".join
)
def test_what_a_url_cannot_say_is_refused_and_not_left_out(options: dict[str, Any]) -> None:
    [name] = options

    with pytest.raises(InvalidSetting, match=rf"OPTIONS\['{name}'\].*CELERY_DELAY_DATABASE_URL"):
        url_of(POSTGRES, NAME="shop", OPTIONS=options)


@pytest.mark.parametrize("engine", ["django.db.backends.oracle", "mssql", ""])
def test_a_database_that_the_audit_cannot_use(engine: str) -> None:
    with pytest.raises(InvalidSetting, match=rf"SQLite, PostgreSQL.*not in {engine}"):
        url_of(engine, NAME="shop")


def test_a_settings_module_pays_nothing_for_it() -> None:
    said = subprocess.run(
        [sys.executable, "-c", "import celery_delay.django, sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )

    loaded = {one.partition(".")[0] for one in said.stdout.split()}
    assert not {"celery", "django", "redis", "sqlalchemy"} & loaded
