"""Manifests as the cluster would get them: rendered by kustomize, read as YAML; no cluster."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.settings import Settings, load_settings
from tests.deploy.test_observability import exposed

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "gpu")
KINDS = {
    "ServiceAccount", "ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy",
    "HorizontalPodAutoscaler", "ServiceMonitor",
}  # fmt: skip


@cache
def rendered(overlay: str) -> dict[str, dict[str, Any]]:
    """Give the objects of an overlay by their kind; skips without a program that renders it."""
    folder = str(KUBERNETES / "overlays" / overlay)
    if shutil.which("kubectl"):
        command = ["kubectl", "kustomize", folder]
    elif shutil.which("kustomize"):
        command = ["kustomize", "build", folder]
    else:
        pytest.skip("neither kubectl nor kustomize is installed")
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


def pod(overlay: str) -> dict[str, Any]:
    template: dict[str, Any] = rendered(overlay)["Deployment"]["spec"]["template"]
    return template


def container(overlay: str) -> dict[str, Any]:
    (only,) = pod(overlay)["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_every_kind_once(overlay: str) -> None:
    assert set(rendered(overlay)) == KINDS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_of_kubernetes_own_is_valid_by_its_schema(overlay: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    own = [each for kind, each in rendered(overlay).items() if kind != "ServiceMonitor"]
    assert len(own) == len(KINDS) - 1
    for each in own:
        validator.validate(each, validator.latest_version(), strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_container_is_hardened_and_bounded(overlay: str) -> None:
    spec, only = pod(overlay)["spec"], container(overlay)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} <= set(only["resources"]["limits"])
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_links_are_off_and_all_settings_are_known(overlay: str) -> None:
    assert pod(overlay)["spec"]["enableServiceLinks"] is False
    names = {*rendered(overlay)["ConfigMap"]["data"], *(each["name"] for each in container(overlay)["env"])}
    assert {name.removeprefix("MADTP_").lower() for name in names} <= set(Settings.model_fields)
    assert all(name.startswith("MADTP_") for name in names)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_that_are_given_are_allowed_and_mounted(
    overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = rendered(overlay)["ConfigMap"]
    for name, value in data["data"].items():
        monkeypatch.setenv(name, value)
    settings = load_settings(env_file=None, models="demo=anywhere")
    assert settings.host == "0.0.0.0"
    assert settings.device == {"cpu": "cpu", "gpu": "cuda"}[overlay]
    assert container(overlay)["envFrom"] == [{"configMapRef": {"name": data["metadata"]["name"]}}]
    writable = {mount["mountPath"] for mount in container(overlay)["volumeMounts"]}
    assert {"/tmp", "/var/cache/huggingface", str(settings.state_dir)} == writable


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_routes_that_exist(overlay: str) -> None:
    probes = {
        kind: container(overlay)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
    }
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/startupz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    app = create_app(load_settings(env_file=None, models="demo=anywhere"))
    assert {probe["path"] for probe in probes.values()} <= set(app.openapi()["paths"])
    assert {probe["port"] for probe in probes.values()} == {"http"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_grace_is_longer_than_the_drain(overlay: str) -> None:
    data = rendered(overlay)["ConfigMap"]["data"]
    drain_s = float(data["MADTP_DRAIN_TIMEOUT_S"])
    assert (
        float(data["MADTP_DRAIN_DELAY_S"]) < drain_s < pod(overlay)["spec"]["terminationGracePeriodSeconds"]
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_selects_selects_the_pods_and_only_them(overlay: str) -> None:
    objects, labels = rendered(overlay), pod(overlay)["metadata"]["labels"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    monitored = objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert monitored.items() <= objects["Service"]["metadata"]["labels"].items()
    assert (
        objects["ServiceMonitor"]["spec"]["endpoints"][0]["port"]
        == objects["Service"]["spec"]["ports"][0]["name"]
    )


def test_the_autoscaler_asks_for_a_metric_of_ours_that_the_adapter_gives() -> None:
    (metric,) = rendered("cpu")["HorizontalPodAutoscaler"]["spec"]["metrics"]
    asked = metric["pods"]["metric"]["name"]
    (rule,) = yaml.safe_load((KUBERNETES / "monitoring" / "adapter-rules.yaml").read_text("utf-8"))["rules"]
    assert asked in exposed()
    assert rule["name"]["as"] == asked
    assert rule["seriesQuery"].startswith(f"{asked}{{")


def test_nobody_but_the_autoscaler_sets_the_number_of_pods() -> None:
    target = rendered("cpu")["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (
        "Deployment",
        rendered("cpu")["Deployment"]["metadata"]["name"],
    )
    assert "replicas" not in rendered("cpu")["Deployment"]["spec"]


def test_images_are_placeholders_with_a_tag_that_an_overlay_sets() -> None:
    assert {container(overlay)["image"] for overlay in OVERLAYS} == {"madtp-serve:cpu", "madtp-serve:cuda"}
    text = "".join(path.read_text("utf-8") for path in KUBERNETES.rglob("*.yaml"))
    assert not re.search(r"(image|newName): \S+\.\S+/", text), "a registry is named"


def test_the_gpu_overlay_asks_for_one_gpu_and_tolerates_its_taint() -> None:
    assert container("gpu")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in container("cpu")["resources"]["limits"]
    assert [each["key"] for each in pod("gpu")["spec"]["tolerations"]] == ["nvidia.com/gpu"]
    assert rendered("gpu")["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
