// Draws the picture of the status page that README shows: a pool that was busy, and then ran out because of five clients.
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { chromium } from "playwright-core";

const { ADMIN_URL, DATABASE_URL, PICTURE } = process.env;
const BUSY_MS = 150_000, LEAKY_MS = 35_000;

async function connect(application_name) {
  const client = new pg.Client({ connectionString: DATABASE_URL, application_name });
  client.on("error", () => {});
  await client.connect();
  return client;
}

// Work that comes and goes.
const end = Date.now() + BUSY_MS;
await Promise.all(Array.from({ length: 7 }, async (_, number) => {
  const client = await connect(`web.${number}`);
  while (Date.now() < end) {
    const wave = 1 + Math.sin(Date.now() / 20_000 + number);
    await client.query(`select pg_sleep(${(0.02 + 0.1 * Math.random()).toFixed(3)})`);
    await sleep(60 + 700 * wave * Math.random());
  }
  await client.end();
}));

const statements = [
  "select * from carts where id = 17 for update", "update jobs set state = 'taken' where id = 4711",
  "select * from accounts where email = 'a@example.org'", "insert into audits (what) values ('login')", "select 1",
];
const admin = await connect("console");
await admin.query("create table carts (id int); create table jobs (id int, state text)");
await admin.query("create table accounts (email text); create table audits (what text)");
await admin.end();
for (const [number, name] of ["web.1", "web.2", "worker.1", "worker.2", "cron"].entries()) {
  const client = await connect(name);
  await client.query("begin");
  await client.query(statements[number]);
}
// As good as any other: a login waits, too, if the server has to look at its settings.
for (let number = 0; number < 12; number++) connect(`web.${number}`).then((client) => client.query("select 1")).catch(() => {});
await sleep(LEAKY_MS);

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", chromiumSandbox: false });
const page = await browser.newPage({ viewport: { width: 900, height: 1150 } });
await page.goto(ADMIN_URL);
await page.locator("#pool-1 [data-part=holders] tr").nth(4).waitFor();
await page.screenshot({ path: PICTURE, clip: { x: 0, y: 0, width: 900, height: 1150 } });
await browser.close();
console.log("well");
process.exit(0);
