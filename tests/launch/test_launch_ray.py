"""Jobs on a Ray cluster of two nodes that share no folder, of which one is lost in the middle."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support import launches
from tests.support.small_world import comparable
from unlearnbench.launch.journal import latest
from unlearnbench.records.folder import load_all
from unlearnbench.storage.store import Store

pytest.importorskip("ray", reason="the extra [ray] is not installed")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without CPUs, and two nodes of one each with stores of their own."""
    from ray.cluster_utils import Cluster

    folder = tmp_path_factory.mktemp("nodes")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [
        made.add_node(num_cpus=1, env_vars={"UNLEARNBENCH_CACHE": str(folder / name), "OMP_NUM_THREADS": "1"})
        for name in ("one", "two")
    ]
    made.wait_for_nodes()
    yield made, nodes, folder
    made.shutdown()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Records of one process."""
    folder = tmp_path_factory.mktemp("plain")
    done = launches.run(folder, "--method", "uce", "--attacks", "latent_probe@0.9")
    assert done.returncode == 0, done.stderr
    return {record.label(): record for record in load_all(folder / "here")}


@pytest.mark.cluster
def test_records_come_back_from_nodes_without_a_shared_folder(tmp_path, cluster, plain):
    made, _, folder = cluster
    words = ("--launcher", "ray", "--shards", 2, "--attacks", "latent_probe@0.9")
    done = launches.run(tmp_path, "--method", "uce", *words, RAY_ADDRESS=made.address)
    assert done.returncode == 0, done.stderr
    found = {record.label(): record for record in load_all(tmp_path / "here")}
    assert set(found) == {"original", "uce"}
    for label, record in found.items():
        assert comparable(record)["scores"] == comparable(plain[label])["scores"]
        assert record.weights == plain[label].weights
        assert record.images == plain[label].images
    seconds = {"seconds"}
    assert {k: v.model_dump(exclude=seconds) for k, v in found["uce"].attacks.items()} == {
        k: v.model_dump(exclude=seconds) for k, v in plain["uce"].attacks.items()
    }
    assert not (tmp_path / "store/samples").exists(), "the driver's own store is not where they worked"
    assert {path.name for path in folder.iterdir()} == {"one", "two"}


@pytest.mark.cluster
def test_a_node_that_is_lost_in_the_middle_costs_nothing_finished(tmp_path, cluster):
    made, nodes, _ = cluster
    slow = launches.slow(tmp_path, 6)
    begun = tmp_path / "begun"
    words = ("--method", f"uce,negative_prompt,{slow}", "--launcher", "ray")
    driver = launches.start(tmp_path, *words, RAY_ADDRESS=made.address)
    end = time.monotonic() + 120
    while not begun.exists():
        assert time.monotonic() < end and driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    journal = latest(Store(tmp_path / "store"), tmp_path / "here")
    (worker,) = {
        int(about["where"].rpartition(":")[2])
        for line, state, about in journal.states()
        if state == "running" and line.name.startswith("slow")
    }
    (place,) = [node for node in nodes if _parent(worker) == node.all_processes["raylet"][0].process.pid]
    begun.unlink()
    made.remove_node(place, allow_graceful=False)
    _, err = driver.communicate(timeout=launches.PATIENCE)
    assert driver.returncode == 0, err
    assert begun.exists(), "it was begun again on the other node"
    found = [record.label() for record in load_all(tmp_path / "here")]
    assert sorted(found) == ["negative_prompt", "original", "slow", "uce"]
    assert {record.revision for record in load_all(tmp_path / "here")} == {1}


def _parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_no_cluster_at_the_address(cli, fresh_store, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    said = cli("run", *launches.SMOKE, "--method", "uce", "--launcher", "ray", "--results", "here")
    assert said.code == 2
    assert "no Ray cluster at RAY_ADDRESS=127.0.0.1:1" in said.err
    assert "ray start --head" in said.err
    assert len(said.err.strip().splitlines()) == 1


@pytest.mark.cluster
def test_more_gpus_than_any_node_has(tmp_path, cluster):
    words = ("--method", "uce", "--launcher", "ray", "--gpus", 1, "--device", "auto")
    done = launches.run(tmp_path, *words, RAY_ADDRESS=cluster[0].address)
    assert done.returncode == 2
    assert "--gpus 1: no node of the Ray cluster has as many, the most is 0 GPU" in done.stderr
