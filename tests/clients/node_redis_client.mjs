// node-redis as applications use it: RESP2 and RESP3, transactions, pub/sub, its isolated commands.
import assert from "node:assert/strict";
import { createClient } from "redis";

const url = process.env.REDIS_URL;

for (const RESP of [2, 3]) {
  const client = await createClient({ url, RESP, name: `probe${RESP}` }).connect();
  const sets = Array.from({ length: 100 }, (_, n) => client.set(`nr:${RESP}:${n}`, String(n)));
  assert.deepEqual(new Set(await Promise.all(sets)), new Set(["OK"]));
  assert.equal(await client.get(`nr:${RESP}:42`), "42");
  const block = await client.multi().incr(`nr:${RESP}:n`).incr(`nr:${RESP}:n`).exec();
  assert.deepEqual(block.map(Number), [1, 2]);
  await client.hSet(`nr:${RESP}:h`, { a: "1", b: "2" });
  assert.deepEqual({ ...(await client.hGetAll(`nr:${RESP}:h`)) }, { a: "1", b: "2" });
  await client.select(2);
  assert.equal(await client.get(`nr:${RESP}:42`), null);
  await client.select(0);
  const listener = await client.duplicate().connect();
  const heard = new Promise((resolve) => listener.subscribe("nr:news", resolve).then(async () => {
    await client.publish("nr:news", "hello");
  }));
  assert.equal(await heard, "hello");
  await listener.unsubscribe("nr:news");
  await listener.close();
  await client.close();
}
console.log("well");
