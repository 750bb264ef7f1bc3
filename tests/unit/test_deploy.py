"""The files of example_project/deploy against their schemas, and against each other."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml

from tests.deployment import DEPLOY, compose, manifests, unit, words_of

ROOT = DEPLOY.parents[1]
UNITS = sorted(path.name for path in (DEPLOY / "systemd").glob("*.service"))
#: The oldest and the newest Kubernetes that the manifests are checked for.
KUBERNETES = ("1.30", "1.34")


def pod_of(component: str) -> dict[str, Any]:
    [pod] = [
        document["spec"]["template"]["spec"]
        for _, document in manifests()
        if document["kind"] in ("Deployment", "Job")
        and document["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    return pod


# --- schemas -----------------------------------------------------------------------------


def test_the_compose_file_is_one() -> None:
    text = yaml.safe_dump(compose())  # its merge keys are YAML's, and not the specification's

    known = compose_spec.PyCompose.from_yaml(text)

    assert {"redis", "postgres", "beat", "worker", "flower", "prometheus", "grafana"} <= set(
        known.service_names()
    )
    with pytest.raises(ValueError, match="intervall"):
        compose_spec.PyCompose.from_yaml(text.replace("interval:", "intervall:"))


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifests_are_of_kubernetes(version: str) -> None:
    kinds = set()
    for _, document in manifests():
        kubernetes_validate.validate(document, version, strict=True)
        kinds.add(document["kind"])

    assert {"Deployment", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Job"} <= kinds
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "spek": {}}, version, strict=True)


@pytest.mark.parametrize("name", UNITS)
def test_the_units_are_of_systemd(name: str, tmp_path: Path) -> None:
    sections = unit(name)
    assert set(sections) <= {"Unit", "Service", "Install"}
    if (analyze := shutil.which("systemd-analyze")) is None:
        return
    # the program is not where it will be; all else is looked at
    text = (DEPLOY / "systemd" / name).read_text().replace("/opt/shop/venv/bin/celery", "/bin/true")
    file = tmp_path / name.replace("@.", "@1.")
    file.write_text(text)

    done = subprocess.run(
        [analyze, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, _about(done.stderr, file.name)) == (0, [])
    file.write_text(text.replace("ExecStart=", "ExecStrat="))
    again = subprocess.run(
        [analyze, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
    )
    assert _about(again.stderr, file.name), "a wrong name is not seen: this proves nothing"


def _about(said: str, name: str) -> list[str]:
    """What was said of our unit; those of the machine are none of ours."""
    return [line for line in said.splitlines() if name in line]


# --- what belongs together ---------------------------------------------------------------


def test_all_ways_run_the_same_commands() -> None:
    services = compose()["services"]
    for component in ("beat", "worker", "flower", "migrate"):
        [container] = pod_of(component)["containers"]
        assert container["args"] == services[component]["command"], component
    assert words_of("shop-beat@.service") == services["beat"]["command"]
    assert words_of("shop-migrate.service") == services["migrate"]["command"]
    worker = services["worker"]["command"]
    assert words_of("shop-worker@.service")[: len(worker)] == worker


def test_all_ways_give_the_same_environment_and_the_project_reads_it() -> None:
    config = (DEPLOY.parent / "shop/config.py").read_text()
    orders = (DEPLOY.parent / "shop/orders.py").read_text()
    read = set(re.findall(r'environ\.get\(\s*"(SHOP_\w+)"', config + orders))
    given = {
        "compose": set(compose()["services"]["beat"]["environment"]),
        "kubernetes": {"SHOP_HTTP"}.union(
            *(one.get("data") or one.get("stringData") for name, one in manifests()
              if name == "config.yaml")
        ),
        "systemd": {
            line.partition("=")[0]
            for line in (DEPLOY / "systemd/shop.env").read_text().splitlines()
            if "=" in line
        },
    }  # fmt: skip
    for way, names in given.items():
        ours = {name for name in names if name.startswith("SHOP_")}
        assert ours == {
            "SHOP_REDIS_URL", "SHOP_AUDIT_URL", "SHOP_DATABASE", "SHOP_LOG_FORMAT", "SHOP_HTTP",
        }, way  # fmt: skip
        assert ours <= read, way


def test_the_beats_outlive_each_other() -> None:
    beat, budget = (
        next(one for name, one in manifests() if name == "beat.yaml" and one["kind"] == kind)
        for kind in ("Deployment", "PodDisruptionBudget")
    )
    [container] = beat["spec"]["template"]["spec"]["containers"]
    port = container["ports"][0]

    assert beat["spec"]["replicas"] == 3
    assert budget["spec"]["selector"] == beat["spec"]["selector"]
    assert budget["spec"]["maxUnavailable"] == 1
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": port["name"]}
    assert container["env"][0]["value"].endswith(f":{port['containerPort']}")
    assert compose()["services"]["beat"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("component", ["beat", "worker", "flower", "migrate"])
def test_the_pods_may_run_where_the_restricted_standard_is_enforced(component: str) -> None:
    pod = pod_of(component)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {*container["resources"]["requests"]} == {"cpu", "memory"}
        assert container["resources"]["limits"]["memory"]


def test_an_outage_of_the_broker_does_not_end_what_workers_have_begun() -> None:
    [worker] = pod_of("worker")["containers"]
    probe = worker["livenessProbe"]

    assert probe["failureThreshold"] * probe["periodSeconds"] >= 15 * 60


def test_the_autoscaler_asks_for_a_gauge_that_there_is() -> None:
    from celery_delay.domain.series import DUE

    [scaler] = [one for _, one in manifests() if one["kind"] == "HorizontalPodAutoscaler"]
    workers = next(one for name, one in manifests() if name == "worker.yaml")
    asked = scaler["spec"]["metrics"][0]["external"]["metric"]

    assert asked["name"] == DUE.name
    assert set(asked["selector"]["matchLabels"]) == set(DUE.labels)
    assert asked["selector"]["matchLabels"]["within"] in DUE.help
    assert scaler["spec"]["scaleTargetRef"]["name"] == workers["metadata"]["name"]
    assert "replicas" not in workers["spec"], "it would be set back by each deploy"


def test_the_image_is_made_of_what_is_there() -> None:
    lines = [
        line for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line and not line.startswith("#")
    ]  # fmt: skip
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    [extras] = re.findall(r"/src\[([\w,]+)\]", "\n".join(lines))
    [entry] = [line.partition(" ")[2] for line in lines if line.startswith("ENTRYPOINT")]

    assert lines[0].startswith("FROM python:3.")
    assert [one for group in copied for one in group if not (ROOT / one).exists()] == []
    assert set(extras.split(",")) <= set(setup["options.extras_require"])
    assert json.loads(entry) == ["celery", "-A", "shop"]


def test_what_is_mounted_is_there() -> None:
    sources = [
        one.partition(":")[0]
        for service in compose()["services"].values()
        for one in service.get("volumes", ())
        if one.startswith("./")
    ]

    assert sources
    assert [one for one in sources if not (DEPLOY / one).exists()] == []
