"""Two nodes, as network namespaces of one machine: the run of one node, and what happens when the other goes away."""

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import draw_shards
from running import command, environment, launch, losses, settings, wait_for_step

RUN = [
    "train.steps=10", "train.save_every=3", "train.val_every=5", "optim.batch_norm=held", "optim.ema=null",
    "loss.seg=combo",
]  # fmt: skip
NODES = ("cssr-node-0", "cssr-node-1")
ADDRESSES = ("10.77.31.1", "10.77.31.2")
LINKS = ("cssr-link-0", "cssr-link-1")
pytestmark = pytest.mark.slow


def ip(*words: str, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """Two namespaces with a link between them."""
    try:
        for node in NODES:
            ip("netns", "add", node)
    except (OSError, subprocess.CalledProcessError) as error:
        ip_removed()
        pytest.skip(f"needs network namespaces (ip netns), which are not allowed here: {error}")
    try:
        ip("link", "add", LINKS[0], "netns", NODES[0], "type", "veth", "peer", "name", LINKS[1], "netns", NODES[1])
        for node, link, address in zip(NODES, LINKS, ADDRESSES):
            ip("-n", node, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", node, "link", "set", link, "up")
            ip("-n", node, "link", "set", "lo", "up")
        yield
    finally:
        ip_removed()


def ip_removed() -> None:
    for node in NODES:
        subprocess.run(["ip", "netns", "del", node], capture_output=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Forty drawn photographs of 64 pixels, in two shards."""
    return draw_shards(tmp_path_factory.mktemp("shards") / "set", 40, 64, "--shard-size", "24")


def start_nodes(
    arguments: list[str], file: str = "multi_node.yaml", hide: Path | None = None
) -> list[subprocess.Popen]:
    """The command on both nodes, one process each; `hide`: a directory of which the second has another one."""
    started = []
    for rank, (node, link) in enumerate(zip(NODES, LINKS)):
        words = command(arguments, file=file)
        at = words.index("--config_file")
        place = ["--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0], "--num_processes", "2"]
        words[at:at] = [*place, "--mixed_precision", "no"]
        where = {**environment(), "GLOO_SOCKET_IFNAME": link, "NCCL_SOCKET_IFNAME": link}
        how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        mount = ["sh", "-c", f'mount -t tmpfs tmpfs "{hide}" && exec "$@"', "-"] if hide and rank else []
        started.append(subprocess.Popen(["ip", "netns", "exec", node, *mount, *words], env=where, **how))
    return started


def end(nodes: list[subprocess.Popen]) -> list[str]:
    """What the nodes have said, once they have ended."""
    return [node.communicate(timeout=300)[1] for node in nodes]


def needs_deepspeed(file: str) -> None:
    if "zero" in file and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs deepspeed: pip install 'cssr[deepspeed]'")


@pytest.fixture(scope="module")
def one_node(shards, tmp_path_factory) -> Path:
    """The run of two processes on one node."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    done = launch(settings(shards, run_dir, *RUN), 2)
    assert done.returncode == 0, done.stderr
    return run_dir


def assert_same(found: Path, expected: Path, within: float = 1e-5) -> None:
    found, expected = losses(found), losses(expected)
    assert sorted(found) == sorted(expected)
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=within)


# ZeRO-2 adds gradients in another order than DDP, and ten steps of Adam make more of the last bit that this changes.
@pytest.mark.parametrize("file, within", [
    ("multi_node.yaml", 1e-5), pytest.param("multi_node_zero2.yaml", 1e-4, marks=pytest.mark.thorough),
])  # fmt: skip
def test_two_nodes_are_one(file, within, network, shards, one_node, tmp_path):
    needs_deepspeed(file)
    output = end(start_nodes(settings(shards, tmp_path / "run", *RUN), file))
    assert (tmp_path / "run" / "export" / "model.safetensors").is_file(), output
    assert_same(tmp_path / "run", one_node, within)
    assert "2 x cpu" in (tmp_path / "run" / "log.txt").read_text()


def test_a_node_that_goes_away_ends_the_run_and_a_restart_continues(network, shards, one_node, tmp_path):
    """Its link goes down: nobody closes a connection, and only the time-out can tell."""
    arguments = settings(shards, tmp_path / "run", *RUN, "train.hang_timeout=10", "train.steps=10")
    slow = [*arguments, "imports=[faulty_loss]", "loss.seg={name: faulty, kind: nap, samples: [20], rank: 1}"]
    nodes = start_nodes([*slow])
    try:
        wait_for_step(tmp_path / "run", 5, nodes[0])
        ip("-n", NODES[0], "link", "set", LINKS[0], "down")
        output = end(nodes)
    finally:
        ip("-n", NODES[0], "link", "set", LINKS[0], "up")
    assert all(node.returncode != 0 for node in nodes)
    assert any("no progress for 10 s" in text or "has lost another rank" in text for text in output)
    assert not [p for p in psutil.process_iter() if str(tmp_path) in " ".join(_words(p))]
    end(start_nodes(arguments))
    assert_same(tmp_path / "run", one_node)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if process.pid != os.getpid() else []
    except psutil.Error:
        return []


def test_nodes_without_a_shared_file_system_are_refused(network, shards, tmp_path):
    """One node sees another, empty directory at the place of the run directory."""
    runs = tmp_path / "runs"
    runs.mkdir()
    nodes = start_nodes(settings(shards, runs / "run", *RUN), hide=runs)
    output = end(nodes)
    assert all(node.returncode != 0 for node in nodes)
    lines = [line for text in output for line in text.splitlines() if line.startswith("error: ")]
    assert any("is not the same directory on all nodes" in line for line in lines)
