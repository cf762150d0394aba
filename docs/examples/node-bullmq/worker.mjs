import { Worker } from "bullmq";
import { database, leave, redis } from "./shared.mjs";

async function fulfil(job) {
  const client = await database.connect();
  try {
    await client.query("begin");
    await client.query("select 1 from orders where id = $1 for update", [job.data.id]);
    await client.query("update orders set state = 'fulfilled' where id = $1", [job.data.id]);
    await client.query("commit");
  } catch (error) {
    await client.query("rollback");
    throw error;
  } finally {
    client.release();
  }
}

const worker = new Worker("orders", fulfil, { connection: redis, concurrency: 10 });
worker.on("failed", (job, error) => console.error(`job ${job?.id}:`, error));
worker.on("error", (error) => console.error(error));

// A platform may say so more than once.
let leaving = false;
process.on("SIGTERM", async () => {
  if (leaving) return;
  leaving = true;
  await worker.close();
  await leave();
});
