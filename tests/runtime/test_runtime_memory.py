"""Free memory: what the machine has left, cut to what the container may take; files kept in memory do not count."""

import pytest

from lightwell.runtime.memory import free_bytes


@pytest.fixture
def meminfo(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  8000 kB\nMemAvailable:  5000 kB\n")
    return path


def test_without_a_limit_it_is_the_machines(tmp_path, meminfo):
    assert free_bytes(tmp_path, meminfo) == 5000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("123\n")
    assert free_bytes(tmp_path, meminfo) == 5000 * 1024
    assert free_bytes(tmp_path, tmp_path / "none") is None


def test_a_containers_limit_counts_and_its_kept_files_do_not(tmp_path, meminfo):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert free_bytes(tmp_path, meminfo) == 100_000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300000\nactive_file 50000\n")
    assert free_bytes(tmp_path, meminfo) == 450_000
    (tmp_path / "memory.current").write_text("2000000\n")
    assert free_bytes(tmp_path, meminfo) == 0


def test_version_1_of_control_groups(tmp_path, meminfo):
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("1000000\n")
    (folder / "memory.usage_in_bytes").write_text("900000\n")
    (folder / "memory.stat").write_text(
        "inactive_file 1\nactive_file 1\ntotal_inactive_file 300000\ntotal_active_file 50000\n"
    )
    assert free_bytes(tmp_path, meminfo) == 450_000
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")  # none
    assert free_bytes(tmp_path, meminfo) == 5000 * 1024
