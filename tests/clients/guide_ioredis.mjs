// The guide's way with ioredis, word for word: SET with EX, GET, and a subscriber beside it; ten of each at once.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
const Redis = require("ioredis");

const PAIRS = 10;

async function pair(number) {
  const redis = new Redis(process.env.REDIS_URL);
  const userData = { id: number, name: "Zoë" };

  // Set with expiration
  assert.equal(await redis.set(`user:${number}`, JSON.stringify(userData), "EX", 3600), "OK");

  // Get
  const data = await redis.get(`user:${number}`);
  const user = JSON.parse(data);
  assert.deepEqual(user, userData);
  const left = await redis.ttl(`user:${number}`);
  assert(left > 3500 && left <= 3600, `${left}`);

  // Pub/Sub pattern
  const subscriber = new Redis(process.env.REDIS_URL);
  const heard = [];
  const enough = new Promise((resolve) => {
    subscriber.on("message", (channel, message) => {
      heard.push(`${channel}: ${message}`);
      if (heard.length === PAIRS) resolve();
    });
  });
  await subscriber.subscribe("notifications");
  return { redis, subscriber, heard, enough };
}

const pairs = await Promise.all(Array.from({ length: PAIRS }, (_, number) => pair(number)));
const clients = (await pairs[0].redis.client("LIST")).trim().split("\n").length;
assert(clients >= 2 * PAIRS, `${clients}`);

// Publish
await Promise.all(pairs.map(({ redis }, number) => redis.publish("notifications", `New order ${number} received`)));
const all = Array.from({ length: PAIRS }, (_, number) => `notifications: New order ${number} received`).sort();
for (const { heard, enough } of pairs) {
  await enough;
  assert.deepEqual(heard.sort(), all);
}
await Promise.all(pairs.flatMap(({ redis, subscriber }) => [redis.quit(), subscriber.quit()]));
console.log(`well: redis ${2 * PAIRS}`);
