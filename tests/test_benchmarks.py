"""The benchmark suite runs and says what it promises; how fast is for `make bench` to tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import deployments

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(120)
def test_one_point_is_measured_beside_the_bare_route(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = ["--seconds", "0.2", "--rounds", "1", "--users", "60", "--only", "read", "--deployment", "sqlite-1"]
    command = [sys.executable, "-m", "benchmarks", *options, "--json", str(figures)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "authenticated read" in ran.stdout
    results = json.loads(figures.read_text())
    assert results["failed"] is False
    found = results["deployments"]["sqlite-1"]
    read = found["points"]["read"]
    assert found["errors"] == {} and read["errors"] == 0
    assert read["rate"] > 0 and found["bare"]["rate"] > 0 and read["ratio"] > 0
    assert 0 < read["p50_ms"] <= read["p99_ms"]
    assert found["ready_seconds"] > 0 and 0 < found["idle_mb"] < found["loaded_mb"] * 2


@pytest.mark.timeout(120)
def test_chat_is_measured_beside_its_model(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = ["--seconds", "0.5", "--deployment", "sqlite-1", "--json", str(figures)]
    command = [sys.executable, "-m", "benchmarks", "chat", *options]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "POST /api/chat" in ran.stdout
    found = json.loads(figures.read_text())["sqlite-1"]
    assert list(found["loads"]) == ["1", "4", "32", "128"]
    for load in [*found["loads"].values(), found["door"]]:
        assert load["errors"] == {} and load["rate"] > 0
        assert load["added_p50_ms"] == pytest.approx(load["p50_ms"] - load["upstream_p50_ms"])
    assert found["fan"]["answers_per_second"] > 0


def test_a_missing_server_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments, "REDIS", "redis://127.0.0.1:1/0")
    with (
        pytest.raises(deployments.Absent, match="no Redis answers"),
        deployments.prepared("postgres-1", tmp_path / "postgres-1", 60),
    ):
        pass
