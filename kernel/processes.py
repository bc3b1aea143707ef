"""Work shared over processes of this machine. None of them is waited for without end."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, TypeVar

from kernel.errors import RunError
from kernel.log import show_log

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Seconds between two looks at the processes.
LOOK_SECONDS = 1.0
#: Seconds in which none of the processes uses its processor, though a result is waited for: they are stopped, or wait
#: for something that does not come.
LONGEST_SILENCE = 300.0
#: Of that processor time, what a process uses that only waits.
_IDLE_SHARE = 0.01
#: Seconds that one result may take, however busy the processes are.
LONGEST_WORK = 24 * 3600.0
#: Items that are begun and not handed out yet, of each process: so that none waits, and results do not pile up.
_BEGUN = 4


def is_one_of_several() -> bool:
    """Whether torchrun has started other processes beside this one."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def map_in_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    starts: Sequence[Callable[[], object]],
    advice: str,
) -> Iterator[Result]:
    """The function of each item, in order, by a process for each of `starts`; a process takes the next when it is free.

    However this ends, its processes end with it, also where one is stopped or hangs.

    Args:
        function: of a module, as is what it takes and returns; what it raises is raised here.
        items: to be worked on.
        starts: each is called once in its process, before all else.
        advice: what to do where a process fails, for the message.

    Raises:
        RunError: a process died; or none has moved for LONGEST_SILENCE, or one result takes longer than LONGEST_WORK.
    """
    context = multiprocessing.get_context("spawn")  # a fork inherits locks of threads, and cannot use CUDA
    others = multiprocessing.active_children()
    queue, used = context.SimpleQueue(), context.RawArray("d", len(starts))
    for place, start in enumerate(starts):
        queue.put((place, pickle.dumps(start)))  # reading it imports its module, which takes seconds
    pool = ProcessPoolExecutor(len(starts), context, _start, (queue, used))
    begun: deque[Future[Result]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) >= _BEGUN * len(starts):
                yield _awaited(begun.popleft(), used, advice)
        while begun:
            yield _awaited(begun.popleft(), used, advice)
    except BrokenProcessPool as error:
        raise RunError(f"a process died, of too little memory perhaps: {advice}") from error
    finally:
        for process in multiprocessing.active_children():
            if process not in others:
                process.kill()  # a stopped one hears nothing else
        pool.shutdown(cancel_futures=True)
        queue.close()


def share_over_devices(
    function: Callable[[Item], Result], items: Iterable[Item], devices: Sequence[str], advice: str
) -> Iterator[Result]:
    """`map_in_processes` with a process for each device, which is its `own_device`; they share the threads of torch."""
    import torch  # takes seconds, which others who import this need not

    threads = max(1, torch.get_num_threads() // len(devices))
    starts = [partial(_start_device, device, threads) for device in devices]
    return map_in_processes(function, items, starts, advice)


#: The device of this process, where it is one of `share_over_devices`.
_DEVICE: list[str] = []


def own_device() -> str | None:
    """The device that this process works on; None: it is none of `share_over_devices`."""
    return _DEVICE[0] if _DEVICE else None


def _start_device(device: str, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    show_log(sys.stderr, f"{device}: %(message)s")
    _DEVICE[:] = [device]


def _awaited(future: Future[Result], used: Sequence[float], advice: str) -> Result:
    """The result, when it is there. Looks are counted, not hours: this process may have been stopped with the others.

    Raises:
        RunError: it does not come.
    """
    silent, before = 0, list(used)
    for _ in range(round(LONGEST_WORK / LOOK_SECONDS)):
        if wait([future], LOOK_SECONDS).done:
            return future.result()
        now = list(used)
        moved = any(new - old > _IDLE_SHARE * LOOK_SECONDS for new, old in zip(now, before, strict=True))
        silent, before = 0 if moved else silent + 1, now
        if silent * LOOK_SECONDS >= LONGEST_SILENCE:
            raise RunError(
                f"no process has moved for {LONGEST_SILENCE:g} s, and one has work to do: it was stopped, or waits for "
                f"a file that does not come; {advice}"
            )
    raise RunError(f"a process has worked {LONGEST_WORK / 3600:g} h on one image, and was ended: {advice}")


def _start(queue: Any, used: Any) -> None:
    """Prepare this process: it is started by the queue's next, tells its processor time, and ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted as well, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    place, start = queue.get()
    threading.Thread(target=_tell_time, args=(used, place), daemon=True).start()
    pickle.loads(start)()


def _end_with_parent() -> None:
    """End this process when its parent has ended, however that came: a pool's would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _tell_time(used: Any, place: int) -> None:
    while True:
        used[place] = time.process_time()
        time.sleep(LOOK_SECONDS)
