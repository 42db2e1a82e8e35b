"""The memory that the metrics report."""

import pytest

from adapters.metrics import memory


def test_memory_of_a_container_with_a_limit(tmp_path):
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 1000\n")
    assert memory(tmp_path) == (2000, 4000)


def test_memory_of_a_container_of_cgroup_1(tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.usage_in_bytes").write_text("3000\n")
    (tmp_path / "memory/memory.limit_in_bytes").write_text("4000\n")
    (tmp_path / "memory/memory.stat").write_text("inactive_file 7\ntotal_inactive_file 500\n")
    assert memory(tmp_path) == (2500, 4000)


@pytest.mark.parametrize("has_limit_file", [True, False])
def test_memory_of_the_host_without_a_limit(tmp_path, has_limit_file):
    if has_limit_file:
        (tmp_path / "memory.current").write_text("3000\n")
        (tmp_path / "memory.max").write_text("max\n")
        (tmp_path / "memory.stat").write_text("inactive_file 1000\n")
    used, limit = memory(tmp_path)
    assert 4000 < used < limit
