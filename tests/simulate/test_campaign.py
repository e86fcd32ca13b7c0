"""Campaigns that lose nothing: real processes, really killed."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from deepgalaxy import progress as progress_module
from deepgalaxy.progress import progress
from deepgalaxy.simulate.snapshot import Encounter
from deepgalaxy.simulate.suite import SuiteConfig

#: Loaded into every worker: writes down which encounter begins, and dies of those that are poison.
PRELOAD = """
import os, signal
from distributed.diagnostics.plugin import WorkerPlugin

class Starts(WorkerPlugin):
    def transition(self, key, start, finish, **_):
        if finish == "executing" and isinstance(key, tuple):
            with open(os.environ["STARTS"], "a") as f:
                f.write(f"{os.getpid()} {key[1]}\\n")
            if key[1] in os.environ.get("POISON", "").split():
                os.kill(os.getpid(), signal.SIGKILL)

async def dask_setup(worker):
    await worker.plugin_add(Starts(), name="starts")
"""


class Campaign:
    """A folder with a suite, and what it takes to run it and to see what happened."""

    def __init__(self, folder: Path, n_encounters: int, **resolution):
        tree = {"name": "tiny", "resolution": {"n_particles": 512, "snapshot_interval": 10.0, "first_time": -20.0,
                                               "last_time": 20.0, **resolution},
                "design": {"kind": "sobol", "n_encounters": n_encounters, "start_time": {"low": 50, "high": 60},
                           # So few particles show no pericentre where the galaxies pass each other far out.
                           "pericentre": {"low": 2, "high": 12}, "orbital_energy": {"low": 0, "high": 0}}}
        self.names = [e.name for e in SuiteConfig.parse(tree).encounters()]
        self.suite, self.runs, self.log = folder / "suite.yaml", folder / "runs", folder / "starts"
        self.suite.write_text(yaml.safe_dump(tree))
        (folder / "preload.py").write_text(PRELOAD)
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "STARTS": str(self.log),
                            "DASK_DISTRIBUTED__WORKER__PRELOAD": str(folder / "preload.py")}
        self.children: list[subprocess.Popen] = []

    def popen(self, *command, poison=(), **options) -> subprocess.Popen:
        """Start `python -m ...` in a process group of its own."""
        child = subprocess.Popen([sys.executable, "-m", *map(str, command)], stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True, start_new_session=True,
                                 env={**self.environment, "POISON": " ".join(poison)}, **options)
        self.children.append(child)
        return child

    def simulate(self, *arguments, **options) -> subprocess.Popen:
        return self.popen("deepgalaxy", "simulate", self.suite, "-o", self.runs, *arguments, **options)

    def starts(self) -> list[tuple[int, str]]:
        """(process, encounter), in the order in which they began."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(line.split()[0]), line.split()[1]) for line in lines]

    def begun(self, n: int, child: subprocess.Popen) -> list[tuple[int, str]]:
        """Wait until n encounters have begun."""
        wait_for(lambda: len(self.starts()) >= n or child.poll() is not None)
        assert child.poll() is None, child.communicate()
        return self.starts()

    def assert_whole(self, names=None):
        """These encounters are there, and each is whole."""
        names = sorted(self.names if names is None else names)
        assert sorted(p.stem for p in self.runs.glob("*.h5")) == names
        for name in names:
            encounter = Encounter.read(self.runs / f"{name}.h5")
            assert encounter.name == name and len(encounter.time) == 5

    def end(self):
        for child in self.children:
            try:
                os.killpg(child.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            child.communicate()


@pytest.fixture
def campaign(tmp_path):
    made = []

    def make(*arguments, **options):
        made.append(Campaign(tmp_path, *arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.fixture
def cluster(tmp_path):
    """cluster(campaign) starts a scheduler and a worker of its own; (address, scheduler, worker) come back."""
    def start(campaign):
        file = tmp_path / "scheduler.json"
        scheduler = campaign.popen("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", 0,
                                   "--no-dashboard", "--scheduler-file", file)
        worker = campaign.popen("distributed.cli.dask_worker", "--scheduler-file", file, "--nworkers", 1,
                                "--nthreads", 1, "--no-dashboard", "--local-directory", tmp_path)
        wait_for(lambda: file.exists() and yaml.safe_load(file.read_text()))  # it is not written in one go
        return yaml.safe_load(file.read_text())["address"], scheduler, worker

    return start


def wait_for(condition, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def outcome(child) -> tuple[int, str]:
    """(status, standard error), which never holds a traceback; without progress, and drifts that few particles have."""
    _, err = child.communicate(timeout=300)
    assert "Traceback" not in err, err
    return child.returncode, re.sub(r"^(simulate: \d+/\d+|\w+: its energy or angular momentum drifts).*\n", "", err,
                                    flags=re.M)


def fingerprint(path: Path):
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_killed_worker_costs_its_encounter_only(campaign):
    c = campaign(6)
    child = c.simulate("--workers", 2)
    pid, name = c.begun(3, child)[-1]
    os.kill(pid, signal.SIGKILL)
    status, err = outcome(child)
    assert status == 0, err
    c.assert_whole()
    assert Counter(n for _, n in c.starts()) == {n: 1 + (n == name) for n in c.names}
    assert sorted(p.suffix for p in c.runs.iterdir() if p.suffix != ".h5") == [".json"]


def test_encounters_that_kill_three_workers_are_set_aside_and_nothing_else_is(campaign):
    c = campaign(4)
    poison = c.names[1:3]
    status, err = outcome(c.simulate("--workers", 2, poison=poison))
    healthy = [n for n in c.names if n not in poison]
    assert status == 1
    c.assert_whole(healthy)
    for name in poison:
        assert re.search(rf"^{name}: 3 workers died while it ran; it is set aside, delete .*{name}.set_aside to try it "
                         "again$", err, re.M), err
        assert "3 workers died" in (c.runs / f"{name}.set_aside").read_text()
    counts = Counter(n for _, n in c.starts())
    assert [counts[n] for n in poison] == [3, 3]

    # It is not tried again until somebody says so.
    c.log.unlink()
    (c.runs / f"{poison[0]}.set_aside").unlink()
    status, err = outcome(c.simulate("--workers", 2))
    assert status == 1 and f"{poison[1]}: was set aside before; delete " in err
    assert [n for _, n in c.starts()] == poison[:1]
    c.assert_whole(sorted([*healthy, poison[0]]))


def test_killed_campaign_leaves_no_process_and_goes_on_with_what_is_missing(campaign):
    c = campaign(6)
    child = c.simulate("--workers", 2)
    c.begun(4, child)
    workers = psutil.Process(child.pid).children(recursive=True)
    child.kill()
    child.wait()
    wait_for(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))
    finished = {p: fingerprint(p) for p in c.runs.glob("*.h5")}
    assert 2 <= len(finished) < 6
    c.assert_whole([p.stem for p in finished])
    c.log.unlink()
    status, err = outcome(c.simulate("--workers", 2))
    assert status == 0, err
    c.assert_whole()
    assert {p: fingerprint(p) for p in finished} == finished
    assert sorted(n for _, n in c.starts()) == sorted(set(c.names) - {p.stem for p in finished})


@pytest.mark.parametrize("whom, number", [("all", signal.SIGINT), ("command", signal.SIGTERM)],
                         ids=["ctrl-c", "sigterm"])
def test_stopped_campaign_ends_cleanly_workers_and_all(campaign, whom, number):
    c = campaign(6)
    child = c.simulate("--workers", 2)
    c.begun(3, child)
    workers = psutil.Process(child.pid).children(recursive=True)
    (os.killpg if whom == "all" else os.kill)(child.pid, number)
    status, err = outcome(child)
    assert (status, err) == (130, "stopped; what was finished is kept\n")
    wait_for(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in workers))
    c.assert_whole([p.stem for p in c.runs.glob("*.h5")])


def test_full_disk_ends_the_campaign_with_one_line_and_keeps_what_is_there(campaign):
    c = campaign(6, n_particles=1024, snapshot_interval=0.5, last_time=60.0)  # 1.3 MB each
    c.runs.mkdir()
    there = c.runs / f"{c.names[2]}.h5"
    Encounter(c.names[2], *(np.zeros(1) for _ in range(7))).write(there)
    before = fingerprint(there)
    limit = 1 << 20
    status, err = outcome(c.simulate("--workers", 2, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (limit, limit))))
    assert status == 2
    assert re.fullmatch(r"SimulationError: .*encounter_000\d.h5: cannot be written .*File too large.*; free space "
                        ".*\n", err)
    assert [p.name for p in c.runs.glob("*.h5")] == [there.name] and fingerprint(there) == before
    assert not list(c.runs.glob(".*.tmp")) and len(c.starts()) <= 4


def test_scheduler_of_ones_own(campaign, cluster):
    c = campaign(4)
    address, _, worker = cluster(c)
    child = c.simulate("--scheduler", address)
    pid, name = c.begun(2, child)[-1]
    os.kill(pid, signal.SIGKILL)
    status, err = outcome(child)
    assert status == 0, err
    c.assert_whole()
    assert Counter(n for _, n in c.starts())[name] == 2
    assert worker.poll() is None  # it is not ours to end


def test_lost_workers_are_one_line(campaign, cluster):
    c = campaign(4)
    address, _, worker = cluster(c)
    child = c.simulate("--scheduler", address, "--patience", 2)
    c.begun(2, child)
    os.killpg(worker.pid, signal.SIGKILL)
    status, err = outcome(child)
    assert status == 2
    assert re.fullmatch(rf"ClusterError: {address}: no worker for \d+ s; start some and run the command again, what "
                        "was finished is kept\n", err)
    c.assert_whole([p.stem for p in c.runs.glob("*.h5")])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "ended"])
def test_lost_scheduler_is_one_line(campaign, cluster, number):
    c = campaign(4)
    address, scheduler, _ = cluster(c)
    child = c.simulate("--scheduler", address)
    c.begun(1, child)
    lost = time.monotonic()
    scheduler.send_signal(number)
    status, err = outcome(child)
    assert status == 2 and time.monotonic() - lost < 30
    assert err == (f"ClusterError: {address}: the Dask scheduler is gone; start it and run the command again, what was "
                   "finished is kept\n")


def test_time_left_counts_what_was_run_and_not_what_was_found(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    with progress("simulate", 100, found=90) as advance:
        for _ in range(10):
            clock[0] += 20
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "simulate: 91/100, 180 s left"
    assert lines[-1] == "simulate: 100/100 in 200 s"


def test_what_comes_at_once_does_not_shorten_the_time_left(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    with progress("render", 100) as advance:
        for _ in range(90):  # of an earlier start
            advance()
        clock[0] += 20
        advance()
    assert capsys.readouterr().err.splitlines()[0] == "render: 91/100, 180 s left"
