"""The notices name what the images install, in the versions of the locks."""

import re

import pytest

from tests.conftest import ROOT

NOTICES = (ROOT / "docs/third-party.md").read_text(encoding="utf-8")


def packages(*locks):
    text = "\n".join((ROOT / f"requirements/{lock}.txt").read_text(encoding="utf-8") for lock in locks)
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(("name", "version"), packages("server", "server-gpu", "triton").items())
def test_every_package_is_named_in_its_version(name, version):
    assert f"| {name} {version} " in NOTICES


def test_nothing_is_named_that_is_not_installed():
    table = NOTICES.split("## Python packages")[1].split("## Base images")[0]
    named = dict(re.findall(r"^\| ([\w.-]+) (\d\S*) ", table, re.MULTILINE))
    assert named == packages("server", "server-gpu", "triton")


def test_what_only_one_image_has_is_said():
    only_cpu = set(re.findall(r"^\| ([\w.-]+) \S+ \(CPU image only\)", NOTICES, re.MULTILINE))
    assert only_cpu == set(packages("server", "triton")) - set(packages("server-gpu"))
