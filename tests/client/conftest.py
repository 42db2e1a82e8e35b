"""Fixtures: a fake Triton with scripted answers; the real server is in tests/conftest.py."""

import pytest
from restormer_client import Enhancer
from restormer_client.testing import FakeTriton


@pytest.fixture
def fake():
    with FakeTriton() as triton:
        yield triton


@pytest.fixture
def enhancer(fake):
    with Enhancer(fake.url) as enhancer:
        yield enhancer
