// postgres.js as applications use it: its pool, which asks for types at connect, prepares every statement under a name
// and pipelines; transactions, savepoints, cursors, COPY streams, listen, cancel.
import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import postgres from "postgres";

import { crowd, until } from "./crowd.mjs";

const url = process.env.DATABASE_URL;
const others = await crowd();
const one = postgres(url, { max: 1 });
const many = postgres(url, { max: 10 });

const failed = async (query, code) => assert.rejects(async () => await query, { code });

// The same statement and the session's own settings, on both server connections.
await one`set work_mem = '5MB'`;
await one.unsafe("set timezone = 'Asia/Tokyo'");
await others.moves(async () => {
  const [row] = await one`
    select ${21}::int * 2 as twice, ${[1, 2]}::int[] as list, ${{ a: 1 }}::jsonb as json,
      current_setting('work_mem') as memory, current_setting('timezone') as zone, pg_backend_pid() as pid`;
  const { pid, ...rest } = row;
  assert.deepEqual(rest, { twice: 42, list: [1, 2], json: { a: 1 }, memory: "5MB", zone: "Asia/Tokyo" });
  return pid;
});

// Many at once on one connection leave in one piece; one that fails fails alone.
const asked = Array.from({ length: 50 }, (_, n) => one`select ${n}::int * 2 as twice`);
assert.deepEqual((await Promise.all(asked)).map((rows) => rows[0].twice), Array.from({ length: 50 }, (_, n) => n * 2));
const mixed = await Promise.allSettled([1, 0, 2].map((n) => one`select 6 / ${n}::int as n`));
assert.deepEqual(mixed.map((done) => done.value?.[0].n ?? done.reason.code), [6, "22012", 3]);

// Transactions: what was committed is there, what was rolled back is not, and a savepoint takes an error.
await many`create table kept (id int primary key, name text)`;
await many.begin(async (sql) => {
  await sql`insert into kept ${sql(Array.from({ length: 100 }, (_, id) => ({ id, name: `name ${id}` })))}`;
  await failed(sql.savepoint((inner) => inner`insert into kept values (99, 'twice')`), "23505");
  await sql`insert into kept values (100, 'behind the savepoint')`;
});
await failed(
  many.begin(async (sql) => {
    await sql`delete from kept`;
    await sql`select 1/0`;
  }),
  "22012",
);
await many.begin("isolation level serializable read only", async (sql) => {
  assert.equal((await sql`show transaction_isolation`)[0].transaction_isolation, "serializable");
});
assert.equal((await many`select count(*)::int as n from kept`)[0].n, 101);

// More tasks than clients, more clients than server connections; no update is lost.
await Promise.all(
  Array.from({ length: 20 }, () =>
    many.begin(async (sql) => {
      const [row] = await sql`select name from kept where id = 1 for update`;
      await sql`update kept set name = ${row.name + "+"} where id = 1`;
    }),
  ),
);
assert.equal((await many`select name from kept where id = 1`)[0].name, "name 1" + "+".repeat(20));

// A portal, read in parts, to its end and not to its end.
const parts = [];
await one`select generate_series(1, 95) as n`.cursor(20, (rows) => void parts.push(rows.length));
assert.deepEqual(parts, [20, 20, 20, 20, 15]);
for await (const [row] of one`select generate_series(1, 1000) as n`.cursor()) if (row.n === 3) break;

// COPY both ways.
const lines = Array.from({ length: 5000 }, (_, n) => `${n}\tname ${n}\n`);
await many`create table copied (id int, name text)`;
await pipeline(Readable.from(lines), await one`copy copied from stdin`.writable());
// Behind more than a buffer of it postgres.js does not go on, directly neither: it gets a connection of its own.
const reader = postgres(url, { max: 1 });
const out = [];
for await (const piece of await reader`copy copied to stdout`.readable()) out.push(piece);
assert.equal(Buffer.concat(out).toString(), lines.join(""));
await reader.end({ timeout: 0 });
// One that is given up: nothing of it stays. (Of data that the server refuses postgres.js never tells, directly neither.)
const givenUp = await one`copy copied from stdin`.writable();
givenUp.write("7\tgiven up\n");
givenUp.destroy();
assert.equal((await one`select count(*)::int as n from copied`)[0].n, 5000);

// Several statements in one simple query, and a statement without a name.
const several = await one.unsafe("select 1 as a; select 2 as b");
assert.deepEqual(several.map((rows) => ({ ...rows[0] })), [{ a: 1 }, { b: 2 }]);
assert.equal((await one.unsafe("select $1::int as n", [7]))[0].n, 7);
assert.equal((await one`select repeat('x', 2000000) as x`)[0].x.length, 2_000_000);

// A cancel ends the statement that runs, and the connection goes on.
const sleeping = one`select pg_sleep(20)`;
const slept = failed(sleeping, "57014");
await others.untilRunning("pg_sleep(20)");
sleeping.cancel();
await slept;
assert.equal((await one`select 'after the cancel' as word`)[0].word, "after the cancel");
await others.moves(async () => (await one`select pg_backend_pid() as pid`)[0].pid);
assert.equal((await one`show work_mem`)[0].work_mem, "5MB");

// Notifications come while the connection does nothing.
const heard = [];
const listening = await many.listen("news", (word) => heard.push(word));
for (const word of ["1", "2", "3"]) {
  await one.notify("news", word);
  await until(`heard ${word}`, () => heard.at(-1) === word);
}
await listening.unlisten();
await one.notify("news", "4");
assert.deepEqual(heard, ["1", "2", "3"]);

await Promise.all([one.end(), many.end(), others.leave()]);
console.log("well");
