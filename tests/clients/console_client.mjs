// The console through node-postgres: simple queries, and prepared ones.

import assert from "node:assert";
import pg from "pg";

const url = new URL(process.env.DATABASE_URL);
url.pathname = "/pgbouncer";
const console_ = new pg.Client({ connectionString: url.href });
await console_.connect();
const pools = await console_.query("SHOW POOLS");
assert.deepEqual(pools.rows.map((row) => row.database), ["app", "pgbouncer"]);
assert.equal(pools.rows[0].cl_waiting, 0);
for (let time = 0; time < 3; time += 1) {
  const lists = await console_.query({ name: "lists", text: "SHOW LISTS", values: [] });
  assert.equal(lists.rows[0].items, 2);
}
const both = await console_.query("SHOW VERSION; SHOW STATE");
assert.deepEqual(both.map((result) => result.command), ["SHOW", "SHOW"]);
await assert.rejects(console_.query("SHOW NOTHING"), { code: "42601" });
await console_.end();
console.log("well");
