// node-postgres as applications use it: its pool, named statements, transactions, errors, notifications, cancel, its
// pipelines.
import assert from "node:assert/strict";
import pg from "pg";

import { crowd, until } from "./crowd.mjs";

const connectionString = process.env.DATABASE_URL;
const others = await crowd();
const pool = new pg.Pool({ connectionString, max: 10 });

async function work(number) {
  for (let n = 0; n < 20; n++) {
    const sum = await pool.query("select $1::int + $2::int as sum", [number, n]);
    assert.equal(sum.rows[0].sum, number + n);
    const named = await pool.query({ name: "twice", text: "select $1::int * 2 as twice", values: [n] });
    assert.equal(named.rows[0].twice, n * 2);
  }
  const client = await pool.connect();
  try {
    await client.query("begin");
    const first = await client.query("select pg_backend_pid() as pid");
    const second = await client.query("select pg_backend_pid() as pid");
    assert.equal(first.rows[0].pid, second.rows[0].pid);
    await assert.rejects(client.query("select 1/0"), { code: "22012" });
    await assert.rejects(client.query("select 1"), { code: "25P02" });
    await client.query("rollback");
  } finally {
    client.release();
  }
}

await Promise.all(Array.from({ length: 20 }, (_, n) => work(n)));

// The same statement and the session's own settings, on both server connections; once more as a pipeline.
for (const pipeline of [false, true]) {
  const client = new pg.Client({ connectionString, pipeline, options: "-c statement_timeout=12345" });
  await client.connect();
  await client.query("set work_mem = '5MB'");
  const text =
    "select $1::int * 2 as twice, current_setting('work_mem') as memory, " +
    "current_setting('statement_timeout') as timeout, pg_backend_pid() as pid";
  await others.moves(async () => {
    const { pid, ...rest } = (await client.query({ name: "shown", text, values: [21] })).rows[0];
    assert.deepEqual(rest, { twice: 42, memory: "5MB", timeout: "12345ms" });
    return pid;
  });

  // Many at once; one that fails fails alone.
  const asked = [3, 0, 2, 6].map((n) => client.query("select 6 / $1::int as n", [n]));
  const done = await Promise.allSettled(asked);
  assert.deepEqual(done.map((one) => one.value?.rows[0].n ?? one.reason.code), [2, "22012", 3, 1]);

  await client.query("create table kept (id int primary key)");
  await client.query("begin");
  await client.query("insert into kept select generate_series(1, 100)");
  await client.query("savepoint a");
  await assert.rejects(client.query("insert into kept values ($1)", [1]), { code: "23505" });
  await client.query("rollback to a");
  await client.query("commit");
  await client.query("begin");
  await client.query("delete from kept");
  await client.query("rollback");
  assert.equal((await client.query("select count(*)::int as n from kept")).rows[0].n, 100);
  await client.query("drop table kept");

  // A cancel ends the statement that runs, and the connection goes on.
  const sleeping = new pg.Query("select pg_sleep(20)");
  const slept = new Promise((resolve) => sleeping.once("error", resolve));
  client.query(sleeping);
  await others.untilRunning("pg_sleep(20)");
  new pg.Client({ connectionString }).cancel(client, sleeping);
  assert.equal((await slept).code, "57014");
  assert.equal((await client.query("select 'after the cancel' as word")).rows[0].word, "after the cancel");

  // Notifications come while the connection does nothing.
  const heard = [];
  client.on("notification", ({ channel, payload }) => heard.push([channel, payload]));
  await client.query("listen news");
  for (const word of ["1", "2", "3"]) {
    await pool.query("select pg_notify('news', $1)", [word]);
    await until(`heard ${word}`, () => heard.at(-1)?.[1] === word);
  }
  await client.query("unlisten news");
  await pool.query("notify news");
  await client.query("select 1");
  assert.deepEqual(heard, [["news", "1"], ["news", "2"], ["news", "3"]]);
  await client.end();
}

const several = await pool.query("select 1 as a; select 2 as b");
assert.deepEqual(several.map((result) => Object.values(result.rows[0])[0]), [1, 2]);
const big = await pool.query("select repeat('x', 2000000) as x");
assert.equal(big.rows[0].x.length, 2000000);
await Promise.all([pool.end(), others.leave()]);
console.log("well");
