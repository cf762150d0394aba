// node-postgres as applications use it: its pool, named statements, transactions, errors, cursors.
import assert from "node:assert/strict";
import pg from "pg";

const pool = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 10 });

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
const several = await pool.query("select 1 as a; select 2 as b");
assert.deepEqual(several.map((result) => Object.values(result.rows[0])[0]), [1, 2]);
const big = await pool.query("select repeat('x', 2000000) as x");
assert.equal(big.rows[0].x.length, 2000000);
await pool.end();
console.log("well");
