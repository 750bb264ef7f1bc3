"""Records as lines of JSON, without servers; what Elastic's tools read from them."""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery

import celery_delay
from celery_delay import CeleryDelay
from celery_delay.domain.settings import Settings
from celery_delay.exceptions import InvalidSetting
from celery_delay.telemetry.ecs import Formatter, check

PACKAGE = Path(celery_delay.__file__).parent
ELASTIC = Path(__file__).parents[2] / "example_project/deploy/elastic"


def record(name: str = "celery_delay.any", **extra: Any) -> logging.LogRecord:
    one = logging.makeLogRecord({"name": name, "levelname": "INFO", "msg": "said"})
    vars(one).update(extra)
    return one


def test_an_event_and_its_facts_have_fields_of_their_own() -> None:
    line = json.loads(Formatter("shop").format(record(event="entries_moved", count=3)))

    assert line["event"] == {"action": "entries_moved", "dataset": "shop.log"}
    assert line["celery_delay"] == {"count": 3}
    assert line["service"] == {"name": "shop", "type": "celery"}
    assert line["message"] == "said"


def test_what_others_give_beside_their_text_is_not_written() -> None:
    line = Formatter().format(record("celery.app.trace", data={"args": "a secret"}))

    assert "secret" not in line
    assert json.loads(line)["log"]["logger"] == "celery.app.trace"


def test_a_line_from_inside_a_task_bears_its_id() -> None:
    app = Celery("inside", set_as_current=False)
    written: list[str] = []

    @app.task(shared=False)
    def task() -> None:
        written.append(Formatter().format(record(event="journal_lost")))

    done = task.apply(task_id="the-task")

    assert done.successful()
    assert json.loads(written[0])["celery_delay"] == {"task_id": "the-task"}


def test_lines_of_others_stay_as_they_are_where_that_is_asked_for() -> None:
    one = Formatter("shop", logging.Formatter("as ever: %(message)s"))

    assert one.format(record("celery.worker")) == "as ever: said"
    assert one.format(record("celery_delay")).startswith("{")


def test_celery_may_set_its_loggers_up_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(delay_log_format="ecs", delay_audit="off")
    CeleryDelay(app)
    handler, theirs = logging.StreamHandler(sys.stderr), logging.getLogger("some.logger")
    monkeypatch.setattr(theirs, "handlers", [handler])

    for _ in range(2):
        app.delayed.log_format.on_setup(logger=theirs)

    assert isinstance(handler.formatter, Formatter)
    assert not isinstance(handler.formatter.plain, Formatter)


def test_human_lines_are_celerys(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("shop", broker="memory://", set_as_current=False)
    CeleryDelay(app)
    handler, theirs = logging.StreamHandler(sys.stderr), logging.getLogger("some.logger")
    monkeypatch.setattr(theirs, "handlers", [handler])

    app.delayed.log_format.on_setup(logger=theirs)

    assert handler.formatter is None


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_delay.telemetry.ecs._LIBRARY", "no_such_library")

    check(Settings())
    with pytest.raises(InvalidSetting, match=r"pip install \"celery-delay\[ecs\]\""):
        check(Settings(log_format="ecs"))


# --- what Elastic's tools are told -------------------------------------------------------


def test_the_pipeline_of_logstash_is_one_by_its_grammar() -> None:
    pipelines = pytest.importorskip("logstash_pipeline_parser", reason="needs Python 3.11 to 3.13")
    text = (ELASTIC / "logstash.conf").read_text()

    tree = pipelines.Pipeline(text).parse()

    assert [one[0] for one in tree] == ["input", "filter", "output"]
    with pytest.raises(Exception, match="Expected"):
        pipelines.Pipeline(text.replace("=> 5044", "> 5044")).parse()


def test_filebeat_reads_json_into_the_fields_of_the_line() -> None:
    given = yaml.safe_load((ELASTIC / "filebeat.yml").read_text())

    inputs = given["filebeat.inputs"]
    assert len({one["id"] for one in inputs}) == len(inputs)
    for one in inputs:
        assert one["type"] in ("filestream", "journald")
        [ndjson] = [parser["ndjson"] for parser in one["parsers"] if "ndjson" in parser]
        # "" puts the fields at the top, where overwritten ones must be ours
        assert ndjson["target"] == ""
        assert ndjson["overwrite_keys"] is True
        assert ndjson["expand_keys"] is True


def test_filebeat_reads_what_the_files_to_deploy_with_write() -> None:
    text = (ELASTIC / "filebeat.yml").read_text()
    kubernetes, systemd = ELASTIC.parent / "kubernetes", ELASTIC.parent / "systemd"

    [pods] = re.findall(r"CELERY_CONTAINERS:/var/log/containers/([^}]+)}", text)
    for path in ("beat.yaml", "worker.yaml", "flower.yaml"):
        name = next(yaml.safe_load_all((kubernetes / path).read_text()))["metadata"]["name"]
        assert fnmatch(f"{name}-7d9f-x_default_{name}-0123.log", pods), path
    [journal] = [
        one for one in yaml.safe_load(text)["filebeat.inputs"] if one["type"] == "journald"
    ]
    for unit in systemd.glob("*.service"):
        # without SyslogIdentifier= it is the name of the program
        [program] = re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.M)
        assert Path(program).name in journal["syslog_identifiers"], unit.name


def test_the_index_knows_the_fields_of_the_schema() -> None:
    def fields(properties: dict[str, Any]) -> dict[str, Any]:
        known: dict[str, Any] = {}
        for name, one in properties.items():
            if one.get("properties"):
                known[name] = fields(one["properties"])
            else:
                known[name] = one.get("type")
        return known

    schema = fields(json.loads((ELASTIC / "log-line.schema.json").read_text())["properties"])
    template = json.loads((ELASTIC / "index-template.json").read_text())
    index = fields(template["template"]["mappings"]["properties"])

    assert set(schema["celery_delay"]) == set(index["celery_delay"])
    for field, kind in schema["celery_delay"].items():
        wanted = {"string": "keyword", "integer": "long", "number": "double"}[kind]
        assert index["celery_delay"][field] == wanted, field
    assert set(index) == {name.partition(".")[0] for name in schema}


# --- what our lines are about ------------------------------------------------------------

LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and ast.unparse(node.func.value) == "logger"
                and node.func.attr in LEVELS
            ):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def facts_of(call: ast.Call) -> set[str]:
    """The names in ``extra``; ``**`` for a mapping that is taken in whole."""
    [extra] = [one.value for one in call.keywords if one.arg == "extra"] or [ast.Dict([], [])]
    assert isinstance(extra, ast.Dict)
    return {str(key.value) if isinstance(key, ast.Constant) else "**" for key in extra.keys}


def test_each_line_has_a_name_and_the_id_of_the_task_that_it_is_about() -> None:
    unnamed, without_id = [], []
    for place, call in log_calls():
        facts = facts_of(call)
        if call.func.attr != "debug" and "event" not in facts:  # type: ignore[attr-defined]
            unnamed.append(place)
        said = " ".join(ast.unparse(one) for one in call.args)
        is_named = facts & {"event"} and not facts & {"task_id", "**"}
        if is_named and re.search(r"task_id|\['id'\]|entry_id", said):
            without_id.append(place)

    assert sum(1 for _ in log_calls()) > 50, "this test looks past the log calls"
    assert unnamed == []
    assert without_id == []


def test_no_line_is_given_arguments_of_a_task() -> None:
    given = {
        place: said
        for place, call in log_calls()
        for one in [*call.args, *(key.value for key in call.keywords)]
        if re.search(r"\b(kw)?args(repr)?\b", said := ast.unparse(one))
    }

    assert given == {}
