"""Which database a URL or an engine names, and what is refused before anything is connected."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from celery_delay.audit import sources
from celery_delay.audit.database import Database
from celery_delay.audit.sources import from_engine, from_url
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import InvalidSetting

PASSWORD = "s3cret"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make modules impossible to import."""

    def without(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return without


def engine(path: Path, **options: Any) -> Engine:
    return create_engine(f"sqlite:///{path}/audit.db", **options)


# --- URLs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://ann@host/db", "postgresql+psycopg"),
        ("postgres://ann@host/db", "postgresql+psycopg"),
        ("postgres+psycopg://ann@host/db", "postgresql+psycopg"),
        ("mysql://ann@host/db", "mysql+pymysql"),
        ("mariadb://ann@host/db", "mariadb+pymysql"),
        ("postgresql+psycopg://ann@host/db", "postgresql+psycopg"),
        ("sqlite:////var/lib/a.db", "sqlite"),
    ],
)
def test_a_url_without_a_driver_gets_the_one_that_is_installed(given: str, used: str) -> None:
    assert from_url(given).url.drivername == used


def test_the_second_choice_is_taken_where_the_first_is_missing(
    without: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("psycopg", "pymysql")
    monkeypatch.setitem(sys.modules, "psycopg2", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "MySQLdb", SimpleNamespace())

    assert from_url("postgresql://ann@host/db").url.drivername == "postgresql+psycopg2"
    assert from_url("mysql://ann@host/db").url.drivername == "mysql+mysqldb"


@pytest.mark.parametrize(
    ("given", "extra"),
    [
        ("postgres://ann:s3cret@host/db", "celery-delay[postgres]"),
        ("postgresql+psycopg2://ann:s3cret@host/db", "celery-delay[postgres]"),
        ("mysql://ann:s3cret@host/db", "celery-delay[mysql]"),
        ("mariadb+pymysql://ann:s3cret@host/db", "celery-delay[mysql]"),
        ("postgresql+nonsense://ann:s3cret@host/db", "celery-delay[postgres]"),
    ],
)
def test_without_any_driver_the_extra_to_install_is_named(
    without: Any, given: str, extra: str
) -> None:
    without("psycopg", "psycopg2", "pymysql", "MySQLdb")

    with pytest.raises(InvalidSetting, match="not installed") as raised:
        from_url(given)

    assert f"pip install '{extra}'" in str(raised.value)
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("sqlite:///audit.db", "absolute"),
        ("sqlite://", "absolute"),
        ("sqlite:///:memory:", "absolute"),
        ("sqlite:///file:audit.db?uri=true", "absolute"),
        ("oracle://ann:s3cret@host/db", "one of sqlite"),
        ("no url at all", "not a URL"),
        ("postgresql+asyncpg://ann:s3cret@host/db", r"postgresql\+psycopg://"),
        ("postgresql+psycopg_async://ann:s3cret@host/db", r"postgresql\+psycopg://"),
        ("mysql+aiomysql://ann:s3cret@host/db", r"mysql\+pymysql://"),
        ("sqlite+aiosqlite:////var/lib/a.db", "sqlite://"),
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(given: str, words: str) -> None:
    with pytest.raises(InvalidSetting, match=words) as raised:
        Database(given)
    assert "delay_database_url" in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_a_schema_on_sqlite_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"delay_database_schema.*SQLite"):
        Database("sqlite:////var/lib/a.db", schema="audit")


# --- engines -------------------------------------------------------------------------------

HERE: dict[str, Any] = {}


def made_here() -> Engine:
    found: Engine = HERE["engine"]
    return found


def test_an_engine_may_be_given_as_it_is_by_a_function_or_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = engine(tmp_path)
    HERE["engine"] = given
    monkeypatch.setitem(sys.modules, "shop_db", SimpleNamespace(engine=given, make=made_here))
    for one in (given, made_here, lambda: given, "shop_db:engine", "shop_db:make"):
        assert from_engine(one).ready is given
        assert Database.of(Settings(database_engine=one)).url == given.url


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("no_such_module.db:engine", "No module named 'no_such_module'"),
        ("os:no_such_name", "no attribute"),
        ("os:path", "gives module"),
        ("os.getcwd", "gives str"),
        (object(), "gives object"),
        (lambda: None, "gives NoneType"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        ({"url": "sqlite://"}, "gives dict"),
    ],
)
def test_what_gives_no_engine_is_refused(given: Any, words: str) -> None:
    with pytest.raises(InvalidSetting, match=words) as raised:
        from_engine(given)
    assert "delay_database_engine" in str(raised.value)


def test_an_asynchronous_engine_is_refused_in_either_shape() -> None:
    dialect = SimpleNamespace(is_async=True, name="postgresql", driver="asyncpg")
    inner = create_engine("postgresql+psycopg://ann:s3cret@host/db")
    inner.dialect = dialect  # type: ignore[assignment]

    for given in (inner, SimpleNamespace(sync_engine=inner), lambda: inner):
        with pytest.raises(InvalidSetting, match="asyncpg") as raised:
            from_engine(given)
        assert "postgresql+psycopg://" in str(raised.value)
        assert PASSWORD not in str(raised.value)


def test_an_engine_of_another_kind_of_database_is_refused(tmp_path: Path) -> None:
    in_memory = create_engine("sqlite://")

    with pytest.raises(InvalidSetting, match=r"delay_database_engine.*absolute"):
        from_engine(in_memory)


def test_an_engines_pool_is_never_used(tmp_path: Path) -> None:
    given = engine(tmp_path)
    database = Database(from_engine(given))

    with database.reading() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
        assert given.pool.checkedout() == 0  # type: ignore[attr-defined]

    assert database.engine.pool is not given.pool
    database.close()
    assert given.pool.checkedin() == 0  # type: ignore[attr-defined]


# --- settings ------------------------------------------------------------------------------


def test_the_url_and_an_engine_are_not_given_both() -> None:
    with pytest.raises(InvalidSetting, match=r"database_url and delay_database_engine"):
        Settings(database_url="sqlite:////a.db", database_engine="shop.db:engine")


@pytest.mark.parametrize("value", ["", 5, True, b"x", "sqlite:////a.db"])
def test_what_cannot_be_an_engine_is_refused_by_the_settings(value: Any) -> None:
    with pytest.raises(InvalidSetting, match="delay_database_engine must be"):
        Settings(database_engine=value)


def test_an_engine_is_an_audit() -> None:
    assert Settings(database_engine="shop.db:engine").audited


def test_a_database_that_is_not_named_has_none() -> None:
    with pytest.raises(InvalidSetting, match="delay_database_url is not set"):
        Database.of(Settings())


def test_every_server_has_its_drivers_and_its_extra() -> None:
    assert set(sources._DRIVERS) == set(sources._EXTRAS)


# --- a primary and its standbys ------------------------------------------------------------


def test_several_urls_are_one_database() -> None:
    source = from_url([f"postgresql://ann:{PASSWORD}@one/db", "postgresql://ann@two/db"])

    assert (source.url.host, [one.host for one in source.others]) == ("one", ["two"])
    assert "one/db, " in str(source)
    assert "two/db" in str(source)
    assert PASSWORD not in str(source)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["postgresql://a/db", "mysql://b/db"], "one kind of database"),
        (["sqlite:////var/lib/a.db", "sqlite:////var/lib/b.db"], "no standbys"),
    ],
)
def test_several_urls_that_are_no_standbys_are_refused(given: list[str], fault: str) -> None:
    with pytest.raises(InvalidSetting, match=fault):
        from_url(given)


@pytest.mark.parametrize("given", [[], ["postgresql://a/db", 3], ["shop"], 3, "shop"])
def test_what_is_no_url_is_refused_by_its_name(given: Any) -> None:
    with pytest.raises(InvalidSetting, match="delay_database_url"):
        Settings.from_mapping({"delay_database_url": given})
