"""Writes the dashboards as Grafana's provisioning reads them: `python -m deploy.grafana.build`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from deploy.grafana.boards import DASHBOARDS
from deploy.grafana.panels import Dashboard, Panel

FOLDER = Path(__file__).parent / "dashboards"
_SOURCE = {"type": "prometheus", "uid": "prometheus"}
_COLUMNS, _ROW_HEIGHT, _STAT_HEIGHT, _PANEL_HEIGHT = 24, 1, 4, 8
_SCHEMA_VERSION = 39


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """Give a dashboard as Grafana wants it, its panels from left to right and downwards."""
    panels: list[dict[str, Any]] = []
    left, line, line_height = 0, 0, 0
    for number, panel in enumerate(dashboard.panels, start=1):
        is_row = isinstance(panel, str)
        width = _COLUMNS if isinstance(panel, str) else panel.width
        if left + width > _COLUMNS:
            left, line, line_height = 0, line + line_height, 0
        height = _height(panel)
        place = {"x": left, "y": line, "w": width, "h": height}
        panels.append(_row(panel, number, place) if isinstance(panel, str) else _panel(panel, number, place))
        left, line_height = left + width, max(line_height, height)
        if is_row:
            left, line, line_height = 0, line + height, 0
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["madtp"],
        "schemaVersion": _SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "",
        "links": [{"type": "dashboards", "tags": ["madtp"], "title": "MADTP", "asDropdown": False,
                   "keepTime": True, "includeVars": True, "icon": "external link", "targetBlank": False}],
        "templating": {"list": [_variable("model", "model"), _variable("task", "task")]},
        "annotations": {"list": []},
        "panels": panels,
    }  # fmt: skip


def as_text(dashboard: Dashboard) -> str:
    """Give a dashboard as the text of its file."""
    return json.dumps(dashboard_json(dashboard), indent=1) + "\n"


def _height(panel: Panel | str) -> int:
    if isinstance(panel, str):
        return _ROW_HEIGHT
    return _STAT_HEIGHT if panel.kind == "stat" else _PANEL_HEIGHT


def _row(title: str, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {"id": number, "type": "row", "title": title, "gridPos": place, "collapsed": False, "panels": []}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.top is not None:
        field["max"] = panel.top
    if panel.kind == "timeseries":
        field["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 20 if panel.is_stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": field, "overrides": []},
        "options": _options(panel),
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries)
        ],
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "area"}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def _variable(name: str, label: str) -> dict[str, Any]:
    query = f"label_values(madtp_model_info, {label})"
    return {
        "name": name,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "refresh": 2,
        "sort": 1,
    }


def main() -> int:
    """Write every dashboard's file."""
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.uid}.json").write_text(as_text(dashboard), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
