"""Compare the third-party notices with the lock files of the images."""

import re

import pytest

from tests.conftest import ROOT

NOTICES = (ROOT / "docs/third-party.md").read_text(encoding="utf-8")


def locked_versions(*locks):
    """Return the version of each package in some lock files."""
    text = "\n".join((ROOT / f"requirements/{lock}.txt").read_text(encoding="utf-8") for lock in locks)
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize(("name", "version"), locked_versions("server", "server-gpu", "triton").items())
def test_every_package_is_listed_with_its_version(name, version):
    assert f"| {name} {version} " in NOTICES


def test_only_installed_packages_are_listed():
    table = NOTICES.split("## Python packages")[1].split("## Base images")[0]
    listed = dict(re.findall(r"^\| ([\w.-]+) (\d\S*) ", table, re.MULTILINE))
    assert listed == locked_versions("server", "server-gpu", "triton")


def test_packages_of_the_cpu_image_alone_are_marked():
    only_cpu = set(re.findall(r"^\| ([\w.-]+) \S+ \(CPU image only\)", NOTICES, re.MULTILINE))
    assert only_cpu == set(locked_versions("server", "triton")) - set(locked_versions("server-gpu"))
