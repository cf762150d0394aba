// The other clients of the pool, for the Node programs beside this file: what crowd.py is for the Python ones.
//
// The pool has two server connections. The crowd takes both and gives one back, so that the next transaction of the
// client under test has to run where its last one did not.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";

const SERVER_CONNECTIONS = 2;
const MILLISECONDS = 15_000;

async function connected() {
  const client = new pg.Client({ connectionString: process.env.DATABASE_URL });
  await client.connect();
  return client;
}

export async function crowd() {
  const holders = [];
  for (let n = 0; n < SERVER_CONNECTIONS; n++) holders.push(await connected());
  return new Crowd(holders, await connected());
}

class Crowd {
  constructor(holders, observer) {
    this.holders = holders;
    this.observer = observer;
  }

  // While `work` runs, no transaction can run on the backend `pid`, and one can on the other.
  async elsewhere(pid, work) {
    const held = new Map();
    for (const holder of this.holders) {
      await holder.query("begin");
      held.set((await holder.query("select pg_backend_pid() as pid")).rows[0].pid, holder);
    }
    // That both can be held proves that no client keeps one for itself.
    assert.equal(held.size, SERVER_CONNECTIONS);
    assert(held.has(pid), `${pid} is one of ${[...held.keys()]}`);
    for (const [other, holder] of held) if (other !== pid) await holder.query("rollback");
    await work();
    await held.get(pid).query("rollback");
  }

  // Has `ask`, which gives its backend's pid, run on both server connections.
  async moves(ask) {
    const first = await ask();
    let second;
    await this.elsewhere(first, async () => (second = await ask()));
    assert.notEqual(first, second);
    await this.elsewhere(second, async () => assert.equal(await ask(), first));
  }

  // Until a statement with `part` in it runs on the server.
  async untilRunning(part) {
    const count =
      "select count(*)::int as n from pg_stat_activity" +
      " where state = 'active' and pid <> pg_backend_pid() and strpos(query, $1) > 0";
    await until(`running: ${part}`, async () => (await this.observer.query(count, [part])).rows[0].n === 1);
  }

  async leave() {
    await Promise.all([...this.holders, this.observer].map((client) => client.end()));
  }
}

export async function until(what, condition) {
  const deadline = Date.now() + MILLISECONDS;
  while (!(await condition())) {
    assert(Date.now() < deadline, `waited in vain: ${what}`);
    await sleep(5);
  }
}
