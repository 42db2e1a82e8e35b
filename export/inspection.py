"""Describe a model package on one page: files, training, network, claims, cost, and contradictions."""

from __future__ import annotations

from pathlib import Path

from export.files import sha256
from export.network.architecture import Architecture
from export.network.cost import multiply_accumulates
from export.package.claims import claims_from_folder
from export.package.model_package import Package
from imaging import SIDE


def describe_package(package: Package) -> str:
    """Return the page as text."""
    convolutions, products = multiply_accumulates(package.architecture, SIDE)
    lines = [f"model package {package.folder}", "", "files"]
    lines += [_file_line(path) for path in sorted(package.folder.iterdir()) if path.is_file()]
    lines += ["", "training"]
    lines += [_training_line(*item) for item in package.training_info.items()] or ["  no training_info.json"]
    lines += [
        "",
        "network",
        f"  weights              {package.location or 'at the top of the checkpoint'}",
        f"  naming               {package.convention.title}",
        f"  eps                  {package.architecture.eps:g}",
        f"  training frame       {package.frame.text}",
        f"  {package.architecture.describe()}",
    ]
    lines += [f"  {line}" for line in _stage_lines(package.architecture)]
    claims = claims_from_folder(package.folder)
    lines += ["", "claims (python -m export evaluate measures them)"]
    lines += [
        f"  {claim.split + ' ' + claim.metric.upper():<20} {claim}  ({claim.source})" for claim in claims.claims
    ] or ["  none"]
    lines += [
        "",
        "cost",
        f"  parameters           {package.parameters:,}",
        f"  at {SIDE}x{SIDE}           {convolutions / 1e9:.2f} GMACs in convolutions, "
        f"{(convolutions + products) / 1e9:.2f} with the attention products",
        "",
        "contradictions",
    ]
    lines += [f"  {remark}" for remark in (*package.remarks, *claims.remarks)] or ["  nothing"]
    return "\n".join(lines)


def _training_line(name: str, value: object) -> str:
    """Format a figure of the training; the training code writes zeros for losses and scores it did not measure."""
    is_placeholder = value == 0 and not isinstance(value, bool) and name != "epoch"
    return f"  {name:<20} {'not measured' if is_placeholder else value}"


def _file_line(path: Path) -> str:
    return f"  {path.name:<28} {path.stat().st_size:>12,} bytes  {sha256(path)}"


def _stage_lines(architecture: Architecture) -> list[str]:
    lines = [f"{'stage':<16} {'blocks':>6} {'width':>6} {'heads':>6} {'feed-forward':>13}"]
    for name, blocks in architecture.stages.items():
        row = [sorted({getattr(block, field) for block in blocks}) for field in ("width", "heads", "hidden")]
        width, heads, hidden = ("/".join(map(str, values)) or "–" for values in row)
        lines.append(f"{name:<16} {len(blocks):>6} {width:>6} {heads:>6} {hidden:>13}")
    return lines
