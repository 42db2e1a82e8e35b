"""Read the quality that a package claims, from its JSON files and the prose of its MANIFEST.txt.

A file's content never raises: a malformed, implausible or placeholder value becomes a remark. Numbers stay decimal, so
that their digits are known: a measured value agrees if it rounds to the claim.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Self

from export.package.documents import text_from_file

SPLITS = ("test", "validation")
#: Where JSON files state a split's means, and the prefix of the metric's name there.
_LOCATIONS = (
    ("config.json", ("performance", "test"), "", "test"),
    ("config.json", ("performance", "validation"), "", "validation"),
    ("training_info.json", (), "val_", "validation"),
)
_MAX = {"l1": Decimal("0.999"), "psnr": Decimal(100), "ssim": Decimal(1)}  # "L1 1.0" is the weight of a loss
_LAST_EXPONENT = {"l1": -4, "psnr": -2, "ssim": -4}  # the last decimal place that is compared
_NUMBER = r"(\d+(?:\.\d+)?)"
_DEVIATION = rf"(?:±|\+/-|\ufffd)\s*{_NUMBER}"  # \ufffd: ± in another encoding than UTF-8
_MEAN = re.compile(rf"\b(L1|PSNR|SSIM)\b(?:[\s=:|(*)]|dB)*{_NUMBER}(?:[\s*]|dB)*(?:{_DEVIATION})?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One mean over images in the digits that the package states, with its deviation if it states one."""

    split: str
    metric: str
    mean: Decimal
    deviation: Decimal | None = None
    source: str

    def __str__(self) -> str:
        stated = [value for value in (self.mean, self.deviation) if value is not None]
        return " ± ".join(str(value) if _exponent(value) >= -6 else f"{value:.6f}" for value in stated)

    def agrees(self, mean: float, deviation: float) -> bool:
        """Return whether measured values round to the stated ones."""
        return self._rounds(mean, self.mean) and (self.deviation is None or self._rounds(deviation, self.deviation))

    def contradicts(self, other: Self) -> bool:
        """Return whether neither mean rounds to the other."""
        return not (self._rounds(self.mean, other.mean) or self._rounds(other.mean, self.mean))

    def _rounds(self, value: float | Decimal, stated: Decimal) -> bool:
        unit = Decimal(10) ** max(_exponent(stated), _LAST_EXPONENT[self.metric])
        return abs(Decimal(value) - stated) <= unit / 2


@dataclass(frozen=True)
class Claims:
    """The claims of a package, at most one for each split and metric, and remarks on them."""

    claims: tuple[Claim, ...]
    remarks: tuple[str, ...]

    def of(self, split: str) -> dict[str, Claim]:
        """Return the claims of one split by metric."""
        return {claim.metric: claim for claim in self.claims if claim.split == split}


def claims_from_folder(folder: Path) -> Claims:
    """Read the claims of the package in ``folder``; of several sources the first counts."""
    remarks: list[str] = []
    claims: dict[tuple[str, str], Claim] = {}
    for claim in (*_claims_from_json(folder, remarks), *_claims_from_text(folder / "MANIFEST.txt")):
        known = claims.setdefault((claim.split, claim.metric), claim)
        if claim.contradicts(known):
            what = f"{claim.split} {claim.metric.upper()}"
            remarks.append(f"{claim.source} says {what} = {claim.mean}, {known.source} says {known.mean}")
        elif known.deviation is None and claim.deviation is not None:
            source = f"{known.source}, {claim.source}"
            claims[claim.split, claim.metric] = replace(known, deviation=claim.deviation, source=source)
    return Claims(tuple(claims.values()), tuple(remarks))


def _claims_from_json(folder: Path, remarks: list[str]) -> Iterator[Claim]:
    """Yield the claims of the JSON files."""
    documents = {source: _read_json(folder / source, remarks) for source in dict.fromkeys(p[0] for p in _LOCATIONS)}
    for source, keys, prefix, split in _LOCATIONS:
        values = documents[source]
        for key in keys:
            values = values.get(key, {}) if isinstance(values, dict) else None
        if not isinstance(values, dict):
            remarks.append(f"{source}: {'.'.join(keys) or 'the whole'} is not an object: its claims are unknown")
            continue
        for metric in _MAX:
            if (key := prefix + metric) in values and values[key] != 0:  # zeros are placeholders
                number, complaint = _parse_claim(values[key], metric)
                if complaint:
                    value = values[key] if isinstance(values[key], str | int | Decimal) else type(values[key]).__name__
                    remarks.append(f"{source}: {'.'.join((*keys, key))} is {str(value)[:40]}, {complaint}")
                else:
                    yield Claim(split=split, metric=metric, mean=number, source=source)


def _read_json(path: Path, remarks: list[str]) -> object:
    try:
        return json.loads(text_from_file(path) or "{}", parse_float=Decimal, parse_constant=Decimal)
    except (ValueError, ArithmeticError, RecursionError) as error:
        remarks.append(f"{path.name} is not valid JSON ({str(error) or type(error).__name__}): its claims are unknown")
        return {}


def _parse_claim(value: object, metric: str) -> tuple[Decimal, str]:
    """Return the number, and why it is not a claim if it is not."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not Decimal(value).is_finite():
        return Decimal(0), "not a number"
    return Decimal(value), "" if 0 < value <= _MAX[metric] else f"not a mean {metric.upper()}"


def _claims_from_text(path: Path) -> list[Claim]:
    """Read the means in a text; deviations follow each mean, or all means together in the same order."""
    claims, split, text = [], "test", text_from_file(path)
    for line in text.splitlines():
        if word := re.search(r"\b(?:val|validation|test)\b", line, re.IGNORECASE):
            split = "test" if word[0].lower() == "test" else "validation"
        for name, mean, deviation in _MEAN.findall(line):
            if 0 < Decimal(mean) <= _MAX[name.lower()]:
                stated = Decimal(deviation) if deviation else None
                claim = Claim(split=split, metric=name.lower(), mean=Decimal(mean), deviation=stated, source=path.name)
                claims.append(claim)
    tested, deviations = [claim for claim in claims if claim.split == "test"], re.findall(_DEVIATION, text)
    if len(deviations) != len(tested) or any(claim.deviation for claim in claims):
        return claims
    completed = [replace(claim, deviation=Decimal(text)) for claim, text in zip(tested, deviations, strict=True)]
    return completed + [claim for claim in claims if claim.split != "test"]


def _exponent(value: Decimal) -> int:
    return int(value.as_tuple().exponent)
