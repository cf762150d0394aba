// BullMQ: jobs, delays, retries and events, with a worker that has its defaults.
import assert from "node:assert/strict";
import { Queue, QueueEvents, Worker } from "bullmq";

const { hostname: host, port, password } = new URL(process.env.REDIS_URL);
const connection = { host, port: Number(port), password };
const queue = new Queue("work", { connection });
const events = new QueueEvents("work", { connection });
await events.waitUntilReady();

const worker = new Worker(
  "work",
  async (job) => {
    if (job.name === "stumble" && job.attemptsMade < 2) throw new Error("not yet");
    await job.updateProgress(50);
    return job.data.n * 2;
  },
  { connection, concurrency: 5 },
);

const jobs = await queue.addBulk(Array.from({ length: 50 }, (_, n) => ({ name: "double", data: { n } })));
const results = await Promise.all(jobs.map((job) => job.waitUntilFinished(events, 30_000)));
assert.deepEqual(results, Array.from({ length: 50 }, (_, n) => n * 2));

const stumbling = await queue.add("stumble", { n: 21 }, { attempts: 3, backoff: 50 });
assert.equal(await stumbling.waitUntilFinished(events, 30_000), 42);

const began = Date.now();
const late = await queue.add("double", { n: 1 }, { delay: 500 });
assert.equal(await late.waitUntilFinished(events, 30_000), 2);
assert.ok(Date.now() - began >= 450);

assert.equal((await queue.getJobCounts("completed")).completed, 52);
await worker.close();
await events.close();
await queue.close();
console.log("well");
