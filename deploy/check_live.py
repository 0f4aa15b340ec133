"""Checks rules and dashboards for real: our service under a little load, a Prometheus, every query asked.

    python -m deploy.check_live [--prometheus PATH] [--seconds 40]

Needs the `prometheus` program (say, of the Debian package of that name) and the extra `loadtest`. Status 1
where a query of a dashboard gives no data or a rule cannot be evaluated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from loadtests.load import plan_requests, run_load
from loadtests.requests import prepare_requests
from loadtests.scenario import Scenario
from loadtests.server import answers, free_port, serving

FOLDER = Path(__file__).parent
_VARIABLES = {"$model": ".*", "$task": ".*", "$__rate_interval": "30s", "$__range": "5m"}
_RATE_PER_S = 4.0
_READY_TIMEOUT_S = 30.0
_EVALUATION_S = 5
_SCRAPE_S = 2


def filled(query: str) -> str:
    """Put values in the place of Grafana's variables, as a user who chose everything."""
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    return query


def dashboard_queries() -> Iterator[tuple[str, str, str]]:
    """Yield dashboard, panel and query."""
    for path in sorted((FOLDER / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel.get("targets", ()):
                yield path.stem, panel["title"], filled(target["expr"])


def config_for(service_url: str, own_port: int) -> dict[str, Any]:
    """Give our scrape configuration with the targets here instead of compose's, and shorter intervals."""
    config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus" / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": f"{_SCRAPE_S}s", "evaluation_interval": f"{_EVALUATION_S}s"}
    config["rule_files"] = [str(FOLDER / "prometheus" / pattern) for pattern in config["rule_files"]]
    addresses = {"madtp": service_url.removeprefix("http://"), "prometheus": f"127.0.0.1:{own_port}"}
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [addresses[job["job_name"]]]}]
    return config


@contextmanager
def running_prometheus(program: str, service_url: str) -> Iterator[str]:
    """Run Prometheus on a free loopback port with our rules; give its address once it is ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "prometheus.yml")
        config.write_text(yaml.safe_dump(config_for(service_url, port)), "utf-8")
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=error",
            ]
        )
        try:
            give_up_s = time.monotonic() + _READY_TIMEOUT_S
            while not answers(f"{url}/-/ready"):
                if process.poll() is not None or time.monotonic() > give_up_s:
                    raise SystemExit("Prometheus did not become ready")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait()


def ask(url: str, path: str, **parameters: str) -> Any:
    """Ask Prometheus' API and give its data; raises SystemExit with its words where it refuses."""
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as response:
            return json.load(response)["data"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{parameters}: {error.read().decode()}") from error


def problems(url: str) -> list[str]:
    """Name every target that is down, rule that fails, and query of a dashboard that gives nothing."""
    found = [
        f"target {target['scrapeUrl']}: {target['lastError']}"
        for target in ask(url, "targets", state="active")["activeTargets"]
        if target["health"] != "up"
    ]
    found += [
        f"rule {rule['name']}: {rule.get('lastError')}"
        for group in ask(url, "rules")["groups"]
        for rule in group["rules"]
        if rule["health"] != "ok"
    ]
    found += [
        f"{dashboard}, {panel}: no data for {query}"
        for dashboard, panel, query in dashboard_queries()
        if not ask(url, "query", query=query)["result"]
    ]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run service, Prometheus and load; say what is wrong."""
    parser = argparse.ArgumentParser(description="Every rule and dashboard query against the real service.")
    parser.add_argument("--prometheus", default="prometheus", help="the program (%(default)s)")
    parser.add_argument("--seconds", type=float, default=40.0, help="of load (%(default)s)")
    options = parser.parse_args(arguments)
    arrivals = {"kind": "poisson", "rate": _RATE_PER_S, "duration_s": options.seconds}
    scenario = Scenario.model_validate(
        {"name": "live", "description": "A little load.", "arrivals": arrivals, "distinct_requests": 40}
    )
    requests = prepare_requests(scenario)
    plan = plan_requests(scenario.schedule_s(), len(requests))
    with serving({}) as service_url, running_prometheus(options.prometheus, service_url) as url:
        run_load(service_url, requests, plan, processes=1, timeout_s=scenario.timeout_s)
        time.sleep(_SCRAPE_S + _EVALUATION_S)
        found = problems(url)
    asked = sum(1 for _ in dashboard_queries())
    sys.stdout.write("\n".join([*found, f"{asked} queries asked, {len(found)} problem(s)"]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
