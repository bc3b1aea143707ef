"""Files shared over the machines of a dask cluster: one task a file, in the order in which workers are free.

dask starts a task anew elsewhere where its worker dies. A file that takes several workers along is given up, and costs
only itself. How the workers came to be (by hand, SLURM, Kubernetes, ssh) is dask's matter.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from itertools import chain
from pathlib import Path
from pickle import PickleError
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kernel.errors import InputError, RunError
from kernel.log import LOG, printable_name
from kernel.runtime.failures import FailedImage
from kernel.text import first_line

if TYPE_CHECKING:
    from distributed import Client


class NamedItem(Protocol):
    """What work is done for."""

    @property
    def name(self) -> str: ...


T = TypeVar("T")
Item = TypeVar("Item", bound=NamedItem)
#: How long a scheduler may take to answer, and how often the lack of workers is told.
CONNECT_SECONDS, REMINDER_SECONDS = 20, 60
#: Tasks that wait at a worker for each of its threads: none should be idle while this process is asked for more.
TASKS_PER_THREAD = 3
#: A worker may be lost, or see the shared folder late: such a task is tried again before its error counts.
RETRIES = 2
#: One file at a time in each worker process: networks use all of its processors, and the memory of one.
_ONE_AT_A_TIME = threading.Lock()


def map_on_cluster(
    address: str, work: Callable[[Item], T], items: Iterable[Item], folder: Path
) -> Iterator[tuple[Item, T | FailedImage]]:
    """Have `work` called with each item, somewhere on the cluster; yields what it returns, in the order of the answers.

    Args:
        address: of the scheduler, as `tcp://host:8786`.
        work: what pickle can send; its module is installed on the workers. It is called in one thread at a time.
        items: images, each taken when it is about to be done; paths in them are as the workers see them.
        folder: must be there for each worker, as it is here: where `work` writes.

    Raises:
        InputError: dask is not installed, or no scheduler answers at the address.
        RunError: the scheduler goes away, or `work` fails on several workers.
    """
    try:
        from distributed import as_completed
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise InputError("--scheduler needs the package distributed: pip install distributed") from error
    client = connect(address)
    with client:
        waiting: Iterator[Item] = iter(items)
        running: dict[Any, Item] = {}  # by the key of the future
        suspects: list[Item] = []  # dask blames all that a dead worker had, also what only waited there
        alone = set[Any]()  # keys of the futures of suspects, which run when nothing else does
        answers = as_completed(loop=client.loop)

        def submit(item: Item) -> Any:
            future = client.submit(call_alone, work, item, folder, pure=False, retries=RETRIES)
            running[future.key] = item
            answers.add(future)
            return future.key

        def fill() -> None:
            threads = max(1, sum(client.nthreads().values()))
            while len(running) < TASKS_PER_THREAD * threads and (item := next(waiting, None)) is not None:
                submit(item)
            if not running and suspects:
                alone.add(submit(suspects.pop(0)))

        try:
            if (first := next(waiting, None)) is not None:
                waiting = chain([first], waiting)
                wait_for_workers(client, address)
                fill()
            for future in answers:
                item = running.pop(future.key)
                try:
                    answer = future.result()
                except KilledWorker:
                    if future.key not in alone:
                        suspects.append(item)
                        future.release()
                        fill()
                        continue
                    reason = "each worker that took it died, of too little memory perhaps: see the workers' logs"
                    LOG.error("image %s: %s", printable_name(item.name), reason)
                    answer = FailedImage(reason, wrong_input=False, error_type=KilledWorker.__name__)
                future.release()
                yield item, answer
                fill()
        except (ImportError, AttributeError, PickleError, RuntimeError) as error:
            # So says dask where what is sent cannot be read: by the scheduler, or by a worker.
            if isinstance(error, RuntimeError) and "deserializ" not in str(error):
                raise
            raise RunError(
                f"the scheduler or the workers at {address} lack this package, or have other versions of it or of "
                f"dask ({first_line(error)}): install on them what is here"
            ) from error
        except (CancelledError, OSError) as error:
            # The client may still call itself running when a question of ours finds the connection closed.
            lost = isinstance(error, (CancelledError, CommClosedError)) or client.status != "running"
            if not lost:
                raise
            raise RunError(
                f"the scheduler at {address} has gone away; what is written stays, and the same command goes on from "
                "there"
            ) from error


def connect(address: str) -> Client:
    """A client of the scheduler.

    Raises:
        InputError: none answers.
    """
    from distributed import Client

    # It logs the loss of the scheduler with a traceback; here the loss is an error of one line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL + 1)
    try:
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError, AssertionError) as error:  # the last where a busy machine starts no thread
        raise InputError(
            f"--scheduler {address}: no dask scheduler of this version answers there within {CONNECT_SECONDS} s "
            f"({first_line(error)}); give the address that `dask scheduler` prints, as tcp://host:8786"
        ) from error


def wait_for_workers(client: Client, address: str) -> None:
    """Wait until there is a worker, which in a queue may take hours; says so every minute.

    Raises:
        OSError: the scheduler goes away.
    """
    begun = told = time.monotonic()
    while not (threads := sum(client.nthreads().values())):
        if client.status != "running":
            raise OSError("the connection is lost")
        time.sleep(0.2)
        if time.monotonic() - told > REMINDER_SECONDS:
            told = time.monotonic()
            LOG.warning("the scheduler at %s has had no worker for %d s: still waiting", address, told - begun)
    LOG.info("the scheduler at %s has workers with %d thread(s) in all", address, threads)


def call_alone(work: Callable[[Item], T], item: Item, folder: Path) -> T:
    """On the worker: the call, while no other runs in this process.

    Raises:
        RunError: the folder is not there.
    """
    if not folder.is_dir():
        raise RunError(
            f"{folder} is not there on one of the workers: --out and the images must lie in a folder that all share"
        )
    with _ONE_AT_A_TIME:
        return work(item)
