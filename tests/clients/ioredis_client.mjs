// ioredis as applications use it: automatic pipelines, transactions, blocking pops, pub/sub, scripts.
import assert from "node:assert/strict";
import { Redis } from "ioredis";

const url = process.env.REDIS_URL;
const clients = Array.from({ length: 10 }, () => new Redis(url, { enableAutoPipelining: true }));

await Promise.all(
  clients.map(async (client, c) => {
    const key = (name) => `io:${c}:${name}`;
    const sets = Array.from({ length: 100 }, (_, n) => client.set(key(n), n));
    assert.deepEqual(new Set(await Promise.all(sets)), new Set(["OK"]));
    assert.equal(await client.get(key(42)), "42");
    const block = await client.multi().incr(key("n")).incr(key("n")).exec();
    assert.deepEqual(block, [[null, 1], [null, 2]]);
    const piped = await client.pipeline().set(key("p"), "1").get(key("p")).lpush(key("p"), "x").exec();
    assert.equal(piped[1][1], "1");
    assert.match(piped[2][0].message, /WRONGTYPE/);
    client.defineCommand("double", { numberOfKeys: 1, lua: "return redis.call('get', KEYS[1]) * 2" });
    assert.equal(await client.double(key("n")), 4);
  }),
);

const worker = new Redis(url);
const popped = worker.brpop("io:queue", 5);
await clients[0].lpush("io:queue", "job");
assert.deepEqual(await popped, ["io:queue", "job"]);

const listener = new Redis(url);
await listener.subscribe("io:news");
const heard = new Promise((resolve) => listener.once("message", (...words) => resolve(words)));
await clients[0].publish("io:news", "hello");
assert.deepEqual(await heard, ["io:news", "hello"]);
await Promise.all([...clients, worker, listener].map((client) => client.quit()));
console.log("well");
