"""RQ: jobs with results, failures and dependencies, worked off by a worker with its defaults."""

import os

from redis import Redis
from rq import Queue, SimpleWorker

connection = Redis.from_url(os.environ["REDIS_URL"])
queue = Queue("work", connection=connection)
jobs = [queue.enqueue("math.factorial", n) for n in range(20)]
broken = queue.enqueue("math.sqrt", -1)
behind = queue.enqueue("math.gcd", 12, 18, depends_on=jobs[0])
assert len(queue) == 21, len(queue)

worker = SimpleWorker([queue], connection=connection)
worker.work(burst=True)

factorial = 1
for n, job in enumerate(jobs):
    factorial *= max(n, 1)
    assert job.return_value() == factorial, (n, job.return_value())
assert broken.is_failed
assert behind.return_value() == 6
assert len(queue) == 0
print("well")
