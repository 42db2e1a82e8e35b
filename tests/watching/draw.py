"""Draw the panels of the Grafana dashboard into one image, from the data of a running Prometheus.

``python -m tests.watching.draw URL IMAGE [MINUTES]``
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

DASHBOARD = Path(__file__).parents[2] / "docker/grafana/dashboards/restormer.json"


def series(url, expression, legend, minutes, step=1):
    """Return ``(name, [times], [values])`` for each series of a query over the last minutes, without NaN."""
    end = time.time()
    query = urlencode({"query": expression, "start": end - 60 * minutes, "end": end, "step": step})
    with urlopen(f"{url}/api/v1/query_range?{query}", timeout=30) as answer:
        document = json.load(answer)
    if document["status"] != "success":
        raise ValueError(f"{expression}: {document}")
    lines = []
    for result in document["data"]["result"]:
        points = [(float(when), float(value)) for when, value in result["values"] if math.isfinite(float(value))]
        # As in Grafana, a label that the series does not have is empty.
        name = re.sub(r"{{(\w+)}}", lambda match, labels=result["metric"]: labels.get(match[1], ""), legend)
        lines.append((name, [when - end for when, _ in points], [value for _, value in points]))
    return lines


def draw(url, path, *, minutes=5, step=1):
    """Write the image to ``path``; return the number of values in each panel, by title."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = pyplot.figure(figsize=(20, height * 0.42))
    shown = {}
    for panel in panels:
        place, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
        axes = figure.add_axes(
            (place["x"] / 24 + 0.03, 1 - (place["y"] + place["h"] - 1.4) / height,
             place["w"] / 24 - 0.045, (place["h"] - 2.6) / height)
        )  # fmt: skip
        lines = [
            line
            for target in panel["targets"]
            for line in series(url, target["expr"], target["legendFormat"], minutes, step)
        ]
        shown[panel["title"]] = sum(len(values) for _, _, values in lines)
        if "stacking" in defaults["custom"] and lines:
            # All series share the times; a gap counts as zero.
            times = sorted({when for _, whens, _ in lines for when in (round(w) for w in whens)})
            rows = [dict(zip((round(w) for w in whens), values, strict=True)) for _, whens, values in lines]
            axes.stackplot(
                times, [[row.get(when, 0.0) for when in times] for row in rows], labels=[n for n, _, _ in lines]
            )
        else:
            for name, times, values in lines:
                axes.plot(times, values, label=name)
        if not shown[panel["title"]]:
            axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
        axes.set(title=f"{panel['title']} ({defaults['unit']})", xlim=(-60 * minutes, 0))
        axes.set_ylim(bottom=defaults["min"], top=defaults.get("max"))
        if lines:
            axes.legend(loc="upper left", fontsize=7)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    return shown


if __name__ == "__main__":
    print(json.dumps(draw(sys.argv[1], sys.argv[2], minutes=float(sys.argv[3]) if len(sys.argv) > 3 else 5)))
