// The status page in Debian's Chromium, while five clients keep the pool's five connections and others wait.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { chromium } from "playwright-core";

import { until } from "./crowd.mjs";

const { ADMIN_URL, DATABASE_URL, TIDEGATE_PID } = process.env;
const ATTACK = `<img src=x onerror="window.hacked=1"><script>hacked=2</script>`;
const NAMES = ["web.1", "web.2", "worker.1", "", ATTACK];
const WAITERS = 3;
// Two askings of the page, and a little.
const ROUNDS_MS = 4500;

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium", chromiumSandbox: false, args: ["--disable-gpu"],
});
const page = await browser.newPage({ viewport: { width: 900, height: 900 } });
const complaints = [], asked = [];
page.on("console", (message) => ["error", "warning"].includes(message.type()) && complaints.push(message.text()));
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("request", (request) => asked.push(request.url()));

const text = (selector) => page.locator(selector).first().innerText();
const shown = (selector, pattern) => page.waitForFunction(
  ([selector, source]) => new RegExp(source).test(document.querySelector(selector)?.textContent ?? ""),
  [selector, pattern.source], { timeout: 15000 });

async function client(application_name, ...statements) {
  const client = new pg.Client({ connectionString: DATABASE_URL, application_name });
  client.on("error", () => {});
  await client.connect();
  for (const statement of statements) await client.query(statement);
  return client;
}

// Nobody is there yet.
const response = await page.goto(ADMIN_URL);
assert.match(response.headers()["content-security-policy"], /default-src 'none'.*connect-src 'self'/);
await shown("#headline", /All is well/);
assert.equal(await page.title(), "tidegate");
await page.evaluate(() => {
  window.told = [];
  const news = document.querySelector("#news");
  new MutationObserver(() => window.told.push(news.textContent)).observe(news, { childList: true, characterData: true, subtree: true });
});

// Five take all connections and keep them; others wait.
const leakers = [];
for (const name of NAMES) leakers.push(await client(name, "begin", "select 'a secret', 42 as answer"));
const waits = Array.from({ length: WAITERS }, (_, n) => client(`waiter.${n}`, "select 1").catch(() => "gone"));
await shown("#headline", /DATABASE_URL: out of connections/);
await shown("#pool-1 .sentence", /^Exhausted: 5 of 5 in use, 3 clients wait, the first for .* s; since \d\d:\d\d:\d\d$/);
await shown("#pool-1 .advice", /has done nothing inside a transaction for .*postgres\.idle_transaction_timeout_ms/);
assert.equal(await page.title(), "exhausted – tidegate");

// Who they are, by words.
const holders = page.locator("#pool-1 [data-part=holders] tr");
await shown("#pool-1 [data-part=holders]", /(LEAK: unused for.*){5}/);
assert.equal(await holders.count(), 5);
const rows = await holders.allInnerTexts();
for (const name of NAMES) assert(rows.some((row) => row.includes(name || "(no name)")), `${name} in ${rows}`);
for (const row of rows) {
  assert.match(row, /idle in transaction/);
  assert.match(row, /127\.0\.0\.1:\d+/);
  assert.match(row, /select \?, \? as answer/);
  assert.doesNotMatch(row, /a secret/);
}
assert.equal(await page.evaluate(() => window.hacked), undefined);
assert.equal(await page.locator("main img, main script").count(), 0);

// For who doesn't see it.
const bar = page.getByRole("meter", { name: "Server connections in use" }).first();
assert.equal(await bar.getAttribute("aria-valuenow"), "5");
assert.equal(await bar.getAttribute("aria-valuemax"), "5");
assert.equal(await bar.getAttribute("aria-valuetext"), "5 of 5 in use: 5 idle in transaction");
await shown("#pool-1 [data-part=caption]", /5 last, of 5; at most 3 waited at once; for .* there was no connection for somebody/);
assert.match(await page.getByRole("img").first().getAttribute("aria-label"), /^Chart: Between 0 and 5 in use/);
assert.equal(await page.locator("#pool-1 [data-part=shades] rect").count() > 0, true);
assert.deepEqual(await page.getByRole("heading", { level: 2 }).allInnerTexts(),
  ["DATABASE_URL", "REDIS_URL", "What happened lately"]);
for (const landmark of ["banner", "main", "contentinfo"]) assert.equal(await page.getByRole(landmark).count(), 1, landmark);
assert.equal(await page.getByRole("region", { name: "DATABASE_URL" }).count(), 1);
await page.setViewportSize({ width: 360, height: 740 });
assert.equal(await page.getByRole("region", { name: "DATABASE_URL" }).getByRole("row").count(), 6, "still a table on a phone");

// No part is wider than a phone.
for (const width of [320, 360, 700, 900]) {
  await page.setViewportSize({ width, height: 740 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(wide, 0, `at ${width} pixels`);
  const out = await page.evaluate(() => [...document.querySelectorAll("main *:not(.unseen)")]
    .filter((node) => !node.closest("thead, [hidden]") && node.getBoundingClientRect().right > innerWidth + 1)
    .map((node) => node.outerHTML.slice(0, 80)));
  assert.deepEqual(out, [], `at ${width} pixels`);
}

// What the eye needs: contrast of every text with what is behind it, by light and by dark.
function faint() {
  const parse = (color) => color.match(/[\d.]+/g).map(Number);
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || node.closest("script, .unseen, noscript, template")) continue;
    if (!node.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push(`${ratio.toFixed(2)}: ${node.textContent.slice(0, 40)}`);
  }
  return found;
}
const grounds = [];
for (const colorScheme of ["light", "dark"]) {
  await page.emulateMedia({ colorScheme });
  assert.deepEqual(await page.evaluate(faint), [], colorScheme);
  grounds.push(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
}
assert.notEqual(grounds[0], grounds[1]);
for (const [reducedMotion, duration] of [["reduce", "0s"], ["no-preference", "0.4s"]]) {
  await page.emulateMedia({ reducedMotion });
  const moves = await page.evaluate(() => getComputedStyle(document.querySelector(".bar i")).transitionDuration);
  assert.equal(moves, duration, reducedMotion);
}

// The tab key comes by all that can be done.
await page.evaluate(() => document.activeElement.blur());
const reached = [];
for (let presses = 0; presses < 12; presses++) {
  await page.keyboard.press("Tab");
  reached.push(await page.evaluate(() => document.activeElement.textContent));
}
const stops = ["Skip to the pools", "Pause updates", "DATABASE_URL", "REDIS_URL", "All figures", "The same as JSON"];
for (const stop of stops) assert(reached.includes(stop), `${stop} in ${reached}`);

// A refresh takes the focus from nobody, opens and closes nothing, and is no news.
const figures = page.locator("#pool-1 summary");
await figures.focus();
await page.keyboard.press("Enter");
await page.evaluate(() => {
  window.row = document.querySelector("#pool-1 [data-part=holders] tr");
  getSelection().selectAllChildren(window.row.firstChild);
});
const before = await text("#about"), toldBefore = await page.evaluate(() => window.told.length);
await sleep(ROUNDS_MS);
assert.notEqual(await text("#about"), before, "the page is alive");
assert(await figures.evaluate((node) => node === document.activeElement && node.parentElement.open));
assert(await page.evaluate(() => window.row.isConnected && getSelection().toString().length > 0));
const told = await page.evaluate(() => window.told);
assert.equal(told.length, toldBefore, `${told}`);
assert.match(told.at(-1), /DATABASE_URL\. Exhausted: 5 of 5/);

// A page that nobody sees asks nothing.
const hide = (hidden) => page.evaluate((hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}, hidden);
await hide(true);
let count = asked.length;
await sleep(ROUNDS_MS);
assert.equal(asked.length, count, "hidden");
await hide(false);
await until("it asks at once", () => asked.length > count);
await page.getByRole("button", { name: "Pause updates" }).click();
count = asked.length;
await sleep(ROUNDS_MS);
assert(asked.length <= count + 1, "paused");
await page.getByRole("button", { name: "Resume updates" }).click();
assert(asked.every((url) => url.startsWith(ADMIN_URL)), `${asked}`);

// One ends its transaction: the first waiter is served, and it shows.
await leakers.pop().query("rollback");
await shown("#pool-1 .sentence", /^Leaking: 4 clients keep a connection unused; 4 of 5 in use, nobody waits$/);
assert.deepEqual(complaints, []);

// The port is gone.
process.kill(Number(TIDEGATE_PID), "SIGKILL");
await shown("#trouble", /No answer from tidegate: nothing listens there any more\. Is it still running\? What follows is how it was at/);
assert(await page.locator("#trouble").isVisible());
assert.equal(await page.title(), "no answer – tidegate");
await shown("#news", /No answer from tidegate/);

await Promise.all(waits);
await browser.close();
console.log("well");
process.exit(0);
