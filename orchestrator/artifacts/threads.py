"""Row blocks on all cores, results in order, memory bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from orchestrator.drivers.cgroups import usable_cpus

Job = TypeVar("Job")
Result = TypeVar("Result")

# More would not help: the writer is one thread, and every block in flight is memory.
MAX_WORKERS = 16


def in_order(function: Callable[[Job], Result], jobs: Iterable[Job]) -> Generator[tuple[Job, Result], None, None]:
    """Yields (job, function(job)) in the order of `jobs`, with two jobs per core in flight at most.

    The threads pay off because reading, numpy and the quantizer release the GIL. If the consumer stops or
    a job raises, the jobs not yet begun are dropped.
    """
    workers = min(usable_cpus(), MAX_WORKERS)
    pool = ThreadPoolExecutor(workers)
    pending: deque[tuple[Job, Future[Result]]] = deque()
    try:
        for job in jobs:
            pending.append((job, pool.submit(function, job)))
            if len(pending) >= 2 * workers:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
