"""Installing: what it does to an app, and what it leaves alone."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.amqp import AMQP
from celery.app.control import Control

from celery_delay import CeleryDelay, install
from celery_delay.audit.log import SQLAuditLog
from celery_delay.calling.amqp import Capturing
from celery_delay.delayed.control import Revoking
from celery_delay.exceptions import InvalidSetting


@pytest.fixture
def new_app() -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**options: Any) -> Celery:
        made.append(Celery("project", set_as_current=False, broker="memory://", **options))
        return made[-1]

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(new_app: Callable[..., Celery]) -> Celery:
    return new_app()


def receivers() -> int:
    return len(signals.task_prerun.receivers)


def test_the_manager_is_app_delayed(app: Celery) -> None:
    manager = CeleryDelay(app)

    assert app.delayed is manager
    assert manager.app is app


def test_installing_twice_changes_nothing(app: Celery) -> None:
    first = CeleryDelay(app)
    amqp, control, listening = app.amqp, app.control, receivers()

    assert CeleryDelay(app) is first
    assert install(app) is first
    assert app.delayed is first
    assert (app.amqp, app.control, receivers()) == (amqp, control, listening)
    assert (app.amqp_cls, app.control_cls) == (
        "celery_delay.calling.amqp:AMQP",
        "celery_delay.delayed.control:Control",
    )


def test_installing_reads_no_configuration(new_app: Callable[..., Celery]) -> None:
    # Given settings that cannot be read yet (Django's, before it is set up)
    app = new_app()
    app.config_from_object("no_such_module.settings", namespace="CELERY")

    CeleryDelay(app)

    assert (app.configured, app.finalized) == (False, False)


def test_settings_may_come_later(app: Celery) -> None:
    CeleryDelay(app)
    app.conf.delay_shards = 4
    app.conf.update(delay_naive_eta="utc")

    assert (app.delayed.settings.shards, app.delayed.settings.naive_eta) == (4, "utc")


def test_settings_may_come_before(app: Celery) -> None:
    app.conf.delay_shards = 4
    CeleryDelay(app)

    assert app.delayed.settings.shards == 4


def test_what_was_made_before_is_replaced(app: Celery) -> None:
    assert type(app.amqp) is AMQP
    assert type(app.control) is Control

    CeleryDelay(app)

    assert isinstance(app.amqp, Capturing)
    assert isinstance(app.control, Revoking)


class OwnAMQP(AMQP):
    greeting = "hello"


class OwnControl(Control):
    greeting = "hello"


@pytest.mark.parametrize("by_name", [True, False])
def test_the_projects_own_classes_stay(new_app: Callable[..., Celery], by_name: bool) -> None:
    app = new_app()
    app.amqp_cls, app.control_cls = (
        (f"{__name__}:OwnAMQP", f"{__name__}:OwnControl") if by_name else (OwnAMQP, OwnControl)
    )

    CeleryDelay(app)
    CeleryDelay(app)

    assert isinstance(app.amqp, OwnAMQP)
    assert isinstance(app.amqp, Capturing)
    assert isinstance(app.control, OwnControl)
    assert isinstance(app.control, Revoking)


def test_other_apps_are_left_alone(new_app: Callable[..., Celery]) -> None:
    ours, other = new_app(), new_app()

    CeleryDelay(ours)

    assert type(other.amqp) is AMQP
    assert not hasattr(other, "delayed")
    assert "celery_delay" not in str(other.fixups)
    assert Celery.amqp_cls == "celery.app.amqp:AMQP"


def test_a_pickled_app_is_installed_where_it_arrives(app: Celery) -> None:
    CeleryDelay(app)
    app.conf.delay_shards = 4

    arrived = pickle.loads(pickle.dumps(app))

    assert arrived is not app
    assert isinstance(arrived.delayed, CeleryDelay)
    assert arrived.delayed is not app.delayed
    assert arrived.delayed.settings.shards == 4
    assert isinstance(arrived.amqp, Capturing)
    assert pickle.loads(pickle.dumps(arrived)).delayed.app is not arrived
    arrived.close()


# --- settings -----------------------------------------------------------------------------


def with_config(app: Celery, namespace: str | None, **constants: Any) -> Any:
    app.config_from_object(SimpleNamespace(**constants), namespace=namespace)
    return CeleryDelay(app)


def test_a_namespace_as_in_django(app: Celery) -> None:
    delayed = with_config(
        app,
        "CELERY",
        CELERY_DELAY_REDIS_URL="redis://elsewhere/3",
        CELERY_DELAY_SHARDS=2,
        CELERY_TASK_ALWAYS_EAGER=True,
        # not ours, whatever they look like
        DELAY_SHIPPING=5,
        delay_shipping=5,
        DELAY_SHARDS=7,
    )

    assert delayed.settings.redis_url == "redis://elsewhere/3"
    assert delayed.settings.shards == 2
    assert app.conf.task_always_eager


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "CELERY_DELAY_REDIS_ULR",
            "x",
            r"CELERY_DELAY_REDIS_ULR; did you mean CELERY_DELAY_REDIS_URL",
        ),
        ("CELERY_DELAY_SHARDS", 0, r"^CELERY_DELAY_SHARDS must be a whole number"),
        ("CELERY_DELAY_LEASE_TRUST", 0.9, r"^CELERY_DELAY_LEASE_TRUST \+ CELERY_DELAY_ELECTION_TI"),
    ],
)
def test_a_wrong_setting_is_named_as_the_project_spells_it(
    app: Celery, name: str, value: Any, told: str
) -> None:
    delayed = with_config(app, "CELERY", **{name: value})

    with pytest.raises(InvalidSetting, match=told):
        _ = delayed.settings


@pytest.mark.parametrize("namespace", ["CELERY", "celery", "CELERY_", "proj"])
def test_capitals_and_small_letters_in_a_namespace(
    app: Celery, new_app: Callable[..., Celery], namespace: str
) -> None:
    name = namespace.rstrip("_") + "_delay_shards"

    assert with_config(app, namespace, **{name.upper(): 2}).settings.shards == 2
    assert with_config(new_app(), namespace, **{name.lower(): 3}).settings.shards == 3


@pytest.mark.parametrize("name", ["delay_shards", "DELAY_SHARDS", "CELERY_DELAY_SHARDS"])
def test_spellings_without_a_namespace(app: Celery, name: str) -> None:
    assert with_config(app, None, **{name: 2}).settings.shards == 2


def test_a_mapping_as_flask_s(app: Celery) -> None:
    app.config_from_object({"delay_shards": 2, "task_ignore_result": True})

    assert CeleryDelay(app).settings.shards == 2
    assert app.conf.task_ignore_result


def test_an_unknown_name_in_capitals_that_can_only_be_ours(app: Celery) -> None:
    delayed = with_config(app, None, CELERY_DELAY_SHADS=2)

    with pytest.raises(InvalidSetting, match="CELERY_DELAY_SHADS; did you mean delay_shards"):
        _ = delayed.settings


def test_a_namespace_does_not_hide_what_the_app_sets_itself(app: Celery) -> None:
    delayed = with_config(app, "CELERY", CELERY_DELAY_SHARDS=2)
    app.conf.delay_shards = 3

    assert delayed.settings.shards == 3


def test_without_a_namespace(app: Celery) -> None:
    delayed = with_config(app, None, delay_shards=2, task_always_eager=True, DELAY_SHIPPING=5)

    assert delayed.settings.shards == 2


def test_an_unknown_setting_without_a_namespace_is_named(app: Celery) -> None:
    delayed = with_config(app, None, delay_shads=2)

    with pytest.raises(InvalidSetting, match=r"delay_shads; did you mean delay_shards\?"):
        _ = delayed.settings


# --- importing ----------------------------------------------------------------------------


def modules_of(statement: str) -> set[str]:
    said = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(said.stdout.split())


def imported_by(statement: str) -> set[str]:
    return {one.partition(".")[0] for one in modules_of(statement)}


def test_importing_the_package_costs_nothing() -> None:
    costly = {"alembic", "celery", "click", "flower", "kombu", "redis", "rich", "sqlalchemy"}

    assert not imported_by("import celery_delay; celery_delay.__version__") & costly
    assert not imported_by("from celery_delay import State, DelayError") & costly


def test_a_producer_pays_for_no_sql() -> None:
    costly = {"alembic", "flower", "rich", "sqlalchemy"}

    assert not imported_by("from celery_delay import CeleryDelay, DelayedResult") & costly


def test_a_beat_loads_no_more_of_sql_than_its_database_needs(tmp_path: Path) -> None:
    """Alembic and the dialects of other databases would take it 12 MB."""
    url = f"sqlite:///{tmp_path}/audit.sqlite"
    SQLAuditLog(url).migrate()

    modules = modules_of(
        "import celery_delay.beat; from celery_delay.audit.log import SQLAuditLog;"
        f" SQLAuditLog({url!r}).prepare()"
    )

    assert "sqlalchemy.dialects.sqlite" in modules
    assert not modules & {
        "alembic", "http.server", "mako", "rich",
        "sqlalchemy.dialects.mysql", "sqlalchemy.dialects.postgresql", "sqlalchemy.orm",
    }  # fmt: skip


def test_all_names_are_there() -> None:
    import celery_delay

    for name in celery_delay.__all__:
        assert getattr(celery_delay, name).__module__.startswith("celery_delay")
    assert set(celery_delay.__all__) <= set(dir(celery_delay))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        celery_delay.nonsense  # noqa: B018
