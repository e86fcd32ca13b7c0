"""Work on a Dask cluster, local or not, that survives the loss of workers."""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future as FetchedValue
from contextlib import ExitStack, contextmanager, suppress

from .errors import ClusterError, ConfigError, DeepGalaxyError
from .memory import WORKER_ENVIRONMENT
from .progress import say

__all__ = ["LostWorkers", "begin_task", "dask_client", "run_tasks"]

#: Workers that may die of one task before it is given up.
MAX_DEATHS = 3
#: Seconds without any worker after which the work is given up.
PATIENCE = 120.0
_LOOK_SECONDS = 1.0
_SAY_SECONDS = 10.0
_FETCH_SECONDS = 5.0


class LostWorkers(DeepGalaxyError):
    """A task of which workers died, again and again."""

    def __init__(self, deaths: int):
        super().__init__(deaths)
        self.deaths = deaths

    def __str__(self) -> str:
        return f"{self.deaths} workers died while it ran"


@contextmanager
def dask_client(scheduler: str | None = None, n_workers: int | None = None):
    """A Dask client: of the cluster at an address, or of a local one with one thread per process.

    Two processes of one thread beat one process of two threads by a third on small galaxies. SIGTERM ends
    the work as SIGINT does.

    Raises
    ------
    ConfigError
        If no scheduler answers at the address.
    ClusterError
        If no local cluster can be started.
    """
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        stack.enter_context(_quiet())
        signals = stack.enter_context(_Signals())
        if scheduler is not None:
            try:
                client = Client(scheduler, timeout=20)
            except (OSError, ValueError) as error:
                raise ConfigError(f"scheduler = {scheduler}: no Dask scheduler answers there ({error})") from None
            stack.callback(_close, client)
            yield client
            return
        stack.enter_context(_workers_environment())
        try:
            with signals.held():
                # A lost worker's tasks come back to us at once: we count (see run_tasks).
                cluster = LocalCluster(n_workers=n_workers or os.cpu_count(), threads_per_worker=1, processes=True,
                                       dashboard_address=None, memory_limit=0, silence_logs=logging.CRITICAL,
                                       scheduler_kwargs={"allowed_failures": 0})
                stack.callback(_close, cluster)
                client = Client(cluster)
        except (OSError, RuntimeError) as error:
            raise ClusterError(f"no local cluster can be started ({_one_line(error)}); is there space in the "
                               "folder for temporary files?") from None
        stack.callback(_close, client)
        stack.push(_kill_if_stopped(cluster))
        yield client


def run_tasks(client, function: Callable, tasks: dict[str, tuple], patience: float = PATIENCE,
              ) -> Iterator[tuple[str, object, Exception | None]]:
    """Run function(*arguments) for every name in `tasks` on the cluster; the loss of a worker costs its task only.

    A task whose worker died is run again. After its last death but one it waits until all others are done
    and runs alone, so that no other task can be to blame for the next. (A scheduler of one's own brings a
    limit, `distributed.scheduler.allowed-failures`: it names a task after that many deaths and one more.)

    Yields
    ------
    (name, value, error) : as tasks finish; error is None, what the function raised, or `LostWorkers`.

    Raises
    ------
    ClusterError
        If the scheduler is gone, or there is no worker for `patience` seconds.
    """
    from distributed import KilledWorker, LocalCluster

    group = hashlib.sha256(repr([function.__qualname__, list(tasks.items())]).encode()).hexdigest()[:16]
    finished: queue.SimpleQueue = queue.SimpleQueue()
    watch = _Watch(client, patience)
    waiting, suspects, running = deque(tasks), deque(), {}
    deaths, attempts = Counter(), Counter()

    def begin(name: str) -> None:
        attempts[name] += 1
        # Tuples make one group of the tasks, which the scheduler keeps until a worker is free.
        future = client.submit(function, *tasks[name], key=(group, name, attempts[name]), retries=0)
        running[future] = name
        future.add_done_callback(finished.put)

    try:
        while waiting or suspects or running:
            # Waiting here, tasks cannot be blamed for the death of a worker. Clusters that grow with their
            # work must see more than they can run.
            n_threads = watch.look()
            limit = n_threads if isinstance(client.cluster, LocalCluster) else 2 * n_threads + 8
            while waiting and len(running) < max(limit, 1):
                begin(waiting.popleft())
            if suspects and not running:
                begin(suspects.popleft())
            try:
                future = finished.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
            outcome = _outcome(future, client, watch)
            if outcome is None:
                future.add_done_callback(finished.put)  # it is computed again
                continue
            name, (value, error) = running.pop(future), outcome
            future.release()
            if isinstance(error, KilledWorker):
                deaths[name] += error.allowed_failures + 1
                if deaths[name] < MAX_DEATHS:
                    (suspects if deaths[name] == MAX_DEATHS - 1 else waiting).append(name)
                    continue
                error = LostWorkers(deaths[name])
            yield name, value, error
    finally:
        with suppress(Exception):  # the scheduler may be gone
            for future in running:
                future.release()


def begin_task(client, function: Callable, *arguments, patience: float = PATIENCE) -> Callable[[], object]:
    """Start one task; what comes back waits for it and returns its value. It is run again if its worker dies.

    Raises (when waited for)
    ------------------------
    LostWorkers
        If `MAX_DEATHS` workers died of it.
    ClusterError
        If the scheduler is gone, or there is no worker for `patience` seconds.
    """
    from distributed import KilledWorker

    future = client.submit(function, *arguments, pure=False, retries=0)

    def wait():
        nonlocal future
        watch, deaths = _Watch(client, patience), 0
        while True:
            while not future.done():
                watch.look()
                with suppress(TimeoutError):
                    future.exception(timeout=_LOOK_SECONDS)
            outcome = _outcome(future, client, watch)
            if outcome is None:  # it is computed again
                continue
            value, error = outcome
            if error is None:
                return value
            if not isinstance(error, KilledWorker):
                raise error
            deaths += error.allowed_failures + 1
            if deaths >= MAX_DEATHS:
                raise LostWorkers(deaths)
            future = client.submit(function, *arguments, pure=False, retries=0)

    return wait


def _outcome(future, client, watch) -> tuple[object, Exception | None] | None:
    """(value, error) of a finished future; None if its worker died before it could hand the value over."""
    # One attempt that is looked at again and again: of attempts that are given up, distributed can hang.
    fetched = FetchedValue()

    def fetch() -> None:
        try:
            fetched.set_result(future.result())
        except BaseException as error:
            fetched.set_exception(error)

    if future.status != "error":
        threading.Thread(target=fetch, daemon=True).start()
    while True:
        if future.status == "cancelled":
            raise _scheduler_gone(client)
        try:
            if future.status != "error":
                return fetched.result(timeout=_FETCH_SECONDS), None
        except TimeoutError:
            if future.status == "finished":  # gigabytes take their time
                watch.look()
                continue
        except Exception:
            pass
        if future.status == "cancelled":
            raise _scheduler_gone(client)
        if future.status != "error":
            return None
        return None, future.exception(timeout=_FETCH_SECONDS)


class _Watch:
    """Looks after a client's scheduler and workers."""

    def __init__(self, client, patience: float):
        self._client, self._patience = client, patience
        self._looked = -_LOOK_SECONDS
        self._n_threads = 0
        self._seen = self._said = time.monotonic()

    def look(self) -> int:
        """Threads of all workers, a second ago at most."""
        now = time.monotonic()
        if self._client.status != "running":
            raise _scheduler_gone(self._client)
        if now - self._looked < _LOOK_SECONDS:
            return self._n_threads
        try:
            self._n_threads = sum(self._client.sync(self._client.scheduler.ncores, callback_timeout=30).values())
        except (OSError, TimeoutError, AttributeError, RuntimeError):
            raise _scheduler_gone(self._client) from None
        self._looked = now
        if self._n_threads:
            self._seen = self._said = now
        elif now - self._seen > self._patience:
            raise ClusterError(f"{_address(self._client)}: no worker for {now - self._seen:.0f} s; start some and run "
                               "the command again, what was finished is kept")
        elif now - self._said > _SAY_SECONDS:
            say(f"{_address(self._client)}: no worker yet; waiting for one")
            self._said = float("inf")  # once is enough
        return self._n_threads


def _scheduler_gone(client) -> ClusterError:
    return ClusterError(f"{_address(client)}: the Dask scheduler is gone; start it and run the command again, what "
                        "was finished is kept")


def _address(client) -> str:
    start = getattr(client, "_start_arg", None)
    return start if isinstance(start, str) else "local cluster"


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _close(what) -> None:
    with suppress(Exception):  # the other side may be gone
        what.close(timeout=5)


@contextmanager
def _workers_environment():
    """What a worker process inherits: libraries take one thread each, and freed memory is kept for the next array.

    By itself Dask has workers give all memory back at once, and every array of a force evaluation is mapped, page
    by page, anew: a sixth of the time of a simulation.
    """
    ours = {"NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **WORKER_ENVIRONMENT}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _Signals:
    """SIGTERM raises KeyboardInterrupt, as SIGINT does; a second signal while we stop changes nothing."""

    def __enter__(self):
        self._held = self._asked = False
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number, frame):
        if self._held:
            self._asked = True
            return
        for each in self._before:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    @contextmanager
    def held(self):
        """A cluster that is stopped while it starts says so in tracebacks: the signal waits until it has started.

        The threads and processes that start meanwhile never see a SIGINT: Ctrl-C reaches them too, and they
        would answer with tracebacks of their own.
        """
        self._held = True
        if hasattr(signal, "pthread_sigmask"):
            from multiprocessing import resource_tracker

            resource_tracker.ensure_running()  # else it would be started with the first worker, and unblock SIGINT
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            self._held = False
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            if self._asked:
                self._stop(signal.SIGTERM, None)


def _kill_if_stopped(cluster):
    """An exit callback: once the work is stopped, no worker has anything to lose, and closing is quick."""
    def exit(kind, error, trace):
        if kind is not None:
            for nanny in cluster.workers.values():
                with suppress(Exception):
                    nanny.auto_restart = False
                    os.kill(nanny.pid, signal.SIGKILL)
    return exit


@contextmanager
def _quiet():
    """What Dask has to say about lost workers and schedulers, we say in one line."""
    names = ("distributed", "distributed.client", "tornado.application", "asyncio")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    yield
    # After an error it stays so: what Dask left undone complains, with tracebacks, as late as at the process's end.
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)
