"""Celery with Redis for its broker and its results: a worker with its defaults, and tasks that wait for each other's results."""

import os
import time

from celery import Celery, chord, group
from celery.contrib.testing.worker import start_worker

URL = os.environ["REDIS_URL"]

app = Celery("work", broker=URL, backend=URL)


@app.task
def add(one, other):
    return one + other


@app.task
def total(numbers):
    return sum(numbers)


@app.task(bind=True, max_retries=3)
def stumble(self):
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return self.request.retries


# The worker's pool of threads: the test has one process.
with start_worker(app, pool="threads", concurrency=4, perform_ping_check=False, loglevel="error"):
    results = [add.delay(n, n) for n in range(50)]
    assert [result.get(timeout=30) for result in results] == [2 * n for n in range(50)]
    assert group(add.s(n, 1) for n in range(10))().get(timeout=30) == list(range(1, 11))
    assert chord(add.s(n, 0) for n in range(10))(total.s()).get(timeout=30) == 45
    assert stumble.delay().get(timeout=30) == 2
    began = time.monotonic()
    assert add.apply_async((1, 2), countdown=1).get(timeout=30) == 3
    assert time.monotonic() - began >= 0.9
    assert any("pong" in str(reply) for reply in app.control.ping(timeout=5))
print("well")
