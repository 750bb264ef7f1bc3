"""The shipped alerts and dashboard: what they name exists, they are well-formed, and they alert."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from celery_delay.domain.series import all_series
from celery_delay.embedded import EmbeddedRedis, free_port
from tests.integration import running
from tests.monitoring import DEPLOY, Monitoring, program
from tests.processes import ProcessHarness, wait_until

pytestmark = pytest.mark.integration

RULES = yaml.safe_load((DEPLOY / "prometheus/celery-delay.rules.yml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
BOARD = json.loads((DEPLOY / "grafana/celery-delay.json").read_text())
RUNBOOK = Path(__file__).parents[2] / "docs/howto/monitor.rst"
#: Of prometheus-client, node_exporter and Prometheus itself.
OTHERS = {
    "process_cpu_seconds_total", "process_resident_memory_bytes", "up",
    "node_filesystem_avail_bytes", "node_filesystem_size_bytes", "node_network_receive_bytes_total",
    "node_network_transmit_bytes_total", "node_network_receive_errs_total",
    "node_network_transmit_errs_total",
}  # fmt: skip


def panels() -> list[dict[str, Any]]:
    return [one for one in BOARD["panels"] if one["type"] != "row"]


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels() for target in panel["targets"]]
    marked = [one["expr"] for one in BOARD["annotations"]["list"]]
    return [one["expr"] for one in ALERTS] + shown + marked


def names_in(expression: str) -> set[str]:
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|on) \([^)]*\)", " ", expression)
    return set(re.findall(r"\b(?:celery_delay|process|node)_\w+|\bup\b", bare))


def check(*command: str, folder: Path | None = None) -> str:
    ran = subprocess.run(
        [program(command[0]), *command[1:]],
        cwd=folder or DEPLOY / "prometheus",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


# --- what is written -----------------------------------------------------------------------


def test_every_metric_of_rules_and_dashboard_is_one_that_is_served() -> None:
    ours = {
        one.name + end
        for one in all_series()
        for end in (("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",))
    }
    used = set().union(*map(names_in, expressions()))

    assert len(used) > 20
    assert used - ours - OTHERS == set()


def test_every_label_is_one_of_its_series() -> None:
    labels = {one.name: {*one.labels, "le", "instance", "job"} for one in all_series()}
    found = [
        (name, label)
        for expression in expressions()
        for name, inner in re.findall(r"(celery_delay_\w+)\{([^}]*)\}", expression)
        for label in re.findall(r"(\w+)\s*[=!]", inner)
    ]

    assert found
    assert [(name, label) for name, label in found if label not in labels[name]] == []


def test_every_alert_is_tested_and_has_its_page_in_the_runbook() -> None:
    tests = yaml.safe_load((DEPLOY / "prometheus/celery-delay.rules.test.yml").read_text())["tests"]
    tested = [one for test in tests for one in test["alert_rule_test"]]
    raised = {one["alertname"] for one in tested if one["exp_alerts"]}
    text = RUNBOOK.read_text()

    names = [one["alert"] for one in ALERTS]
    assert len(set(names)) == len(names) > 10
    assert [one for one in names if one not in raised] == []
    assert [one for one in names if f"\n{one}\n{'~' * len(one)}\n" not in text] == []
    assert set(re.findall(r"^(CeleryDelay\w+)$", text, re.MULTILINE)) == set(names)


def test_the_files_are_what_prometheus_and_alertmanager_take() -> None:
    check("promtool", "check", "config", "prometheus.yml")
    check("promtool", "test", "rules", "celery-delay.rules.test.yml")
    check("amtool", "check-config", "alertmanager.yml")


def test_the_dashboard_is_whole_and_its_queries_are_promql(tmp_path: Path) -> None:
    ids = [one["id"] for one in BOARD["panels"]]
    rules = [
        {"record": f"panel:{number}", "expr": text.replace("$__rate_interval", "5m")}
        for number, text in enumerate(expressions())
    ]
    (tmp_path / "board.yml").write_text(yaml.safe_dump({"groups": [{"name": "b", "rules": rules}]}))

    check("promtool", "check", "rules", "board.yml", folder=tmp_path)
    assert len(set(ids)) == len(ids)
    for one in panels():
        assert one["title"], one
        assert one["description"], one
        assert one["targets"], one
        assert one["datasource"]["uid"] == "${datasource}"
    places = [(one["gridPos"]["y"], one["gridPos"]["x"]) for one in BOARD["panels"]]
    assert len(set(places)) == len(places), "two panels in one place"


# --- what happens --------------------------------------------------------------------------


@pytest.fixture
def project(
    harness: Callable[..., ProcessHarness], new_redis: Callable[..., EmbeddedRedis], tmp_path: Path
) -> Iterator[Callable[..., running.Running]]:
    yield from running.projects(harness, new_redis().tcp_url, tmp_path)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Callable[..., Monitoring]]:
    made: list[Monitoring] = []

    def make(*ports: int) -> Monitoring:
        (tmp_path / "monitoring").mkdir()
        made.append(Monitoring(tmp_path / "monitoring", ports))
        return made[-1].start()

    yield make
    for one in made:
        one.end()
        print(one)


def test_a_killed_leader_raises_no_alert_while_another_leads_and_one_when_none_does(
    project: Callable[..., running.Running], monitor: Callable[..., Monitoring]
) -> None:
    # Given two beats that Prometheus watches
    ports = free_port(), free_port()
    shop = project(delay_audit="off")
    settings = json.loads(shop.procs.env["PROJECT"])
    beats = []
    for port in ports:
        own = json.dumps({**settings, "delay_http": f"127.0.0.1:{port}"})
        beats.append(shop.procs.beat(f"beat-{port}", env={"PROJECT": own}))
    watch = monitor(*ports)
    leads = "sum(celery_delay_leader)"
    wait_until(lambda: [one["value"][1] for one in watch.ask(leads)] == ["1"], 20, "a leader seen")
    wait_until(lambda: len(watch.ask('up{job="celery-delay"} == 1')) == 2, 20, "two beats seen")

    # When the leader is killed, the other takes over: only that it is alone is told
    leader = next(one for one in beats if re.search(r"leads \(term", one.output()))
    standby = next(one for one in beats if one is not leader)
    leader.kill()
    wait_until(lambda: "CeleryDelayNoStandby" in watch.alerts(), 20, "the alert on one beat")
    assert "CeleryDelayNoLeader" not in watch.alerts()

    # When that one is killed too, Alertmanager hears of it
    standby.kill()
    wait_until(lambda: "CeleryDelayNoLeader" in watch.alerts(), 20, "the alert on no leader")

    # And when one is back, that it is over
    leader.start()
    wait_until(lambda: [one["value"][1] for one in watch.ask(leads)] == ["1"], 20, "a leader seen")
    wait_until(lambda: "CeleryDelayNoLeader" not in watch.alerts(), 20, "the end of the alert")
