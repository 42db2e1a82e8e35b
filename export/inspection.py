"""Describe a model package on one page: files, training, network, claims, cost, and contradictions."""

from export.files import sha256
from export.network.architecture import Architecture
from export.network.cost import multiply_accumulates
from export.package.claims import claims_from_folder
from export.package.model_package import Package
from imaging import SIDE


def describe_package(package: Package) -> str:
    """Return the page as text."""
    convolutions, products = multiply_accumulates(package.architecture, SIDE)
    claims = claims_from_folder(package.folder)
    files = [path for path in sorted(package.folder.iterdir()) if path.is_file()]
    sections = {
        "files": [f"{path.name:<28} {path.stat().st_size:>12,} bytes  {sha256(path)}" for path in files],
        "training": [_training_line(*item) for item in package.training_info.items()] or ["no training_info.json"],
        "network": [
            f"weights              {package.location or 'at the top of the checkpoint'}",
            f"naming               {package.convention.title}",
            f"eps                  {package.architecture.eps:g}",
            f"training frame       {package.frame.text}",
            package.architecture.describe(),
            *_stage_lines(package.architecture),
        ],
        "claims (python -m export evaluate measures them)": [
            f"{claim.split + ' ' + claim.metric.upper():<20} {claim}  ({claim.source})" for claim in claims.claims
        ]
        or ["none"],
        "cost": [
            f"parameters           {package.parameters:,}",
            f"at {SIDE}x{SIDE}           {convolutions / 1e9:.2f} GMACs in convolutions, "
            f"{(convolutions + products) / 1e9:.2f} with the attention products",
        ],
        "contradictions": [*package.remarks, *claims.remarks] or ["nothing"],
    }
    lines = [f"model package {package.folder}"]
    for title, rows in sections.items():
        lines += ["", title, *(f"  {row}" for row in rows)]
    return "\n".join(lines)


def _training_line(name: str, value: object) -> str:
    """Format a figure of the training; the training code writes zeros for losses and scores it did not measure."""
    is_placeholder = value == 0 and not isinstance(value, bool) and name != "epoch"
    return f"{name:<20} {'not measured' if is_placeholder else value}"


def _stage_lines(architecture: Architecture) -> list[str]:
    lines = [f"{'stage':<16} {'blocks':>6} {'width':>6} {'heads':>6} {'feed-forward':>13}"]
    for name, blocks in architecture.stages.items():
        row = [sorted({getattr(block, field) for block in blocks}) for field in ("width", "heads", "hidden")]
        width, heads, hidden = ("/".join(map(str, values)) or "–" for values in row)
        lines.append(f"{name:<16} {len(blocks):>6} {width:>6} {heads:>6} {hidden:>13}")
    return lines
