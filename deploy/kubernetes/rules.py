"""Writes components/monitoring/prometheusrule.yaml from docker/prometheus/rules.yml, the one source of the rules.

``python deploy/kubernetes/rules.py``, after the rules were changed; a test says so if it was forgotten. The groups are
taken as they stand, comments with them.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "docker/prometheus/rules.yml"
TARGET = ROOT / "deploy/kubernetes/components/monitoring/prometheusrule.yaml"
HEAD = """\
# Made by deploy/kubernetes/rules.py from docker/prometheus/rules.yml: change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: restormer
  labels: {app.kubernetes.io/name: restormer, app.kubernetes.io/component: triton}
spec:
"""


def prometheus_rule(rules: str) -> str:
    """The rules file as a PrometheusRule, indented below its ``spec``."""
    return HEAD + "".join(f"  {line}" if line.strip() else line for line in rules.splitlines(keepends=True))


def main() -> int:
    """Writes the file."""
    TARGET.write_text(prometheus_rule(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
