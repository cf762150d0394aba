import http from "node:http";
import { Queue } from "bullmq";
import { database, leave, redis } from "./shared.mjs";

const queue = new Queue("orders", { connection: redis });

async function create(request) {
  let body = "";
  for await (const part of request) body += part;
  const { item } = JSON.parse(body);
  const { rows } = await database.query("insert into orders (item) values ($1) returning id", [item]);
  await queue.add("fulfil", { id: rows[0].id });
  return [201, { id: Number(rows[0].id) }];
}

async function show(id) {
  const { rows } = await database.query("select id, item, state from orders where id = $1", [id]);
  return rows.length ? [200, rows[0]] : [404, {}];
}

const server = http.createServer(async (request, response) => {
  let status, words;
  try {
    const known = request.url.match(/^\/orders\/(\d+)$/);
    if (request.method === "POST" && request.url === "/orders") [status, words] = await create(request);
    else [status, words] = known ? await show(known[1]) : [404, {}];
  } catch (error) {
    console.error(error);
    [status, words] = [500, {}];
  }
  response.writeHead(status, { "content-type": "application/json" });
  response.end(JSON.stringify(words));
});

server.listen(Number(process.env.PORT), process.env.HOST ?? "0.0.0.0");

// A platform may say so more than once.
let leaving = false;
process.on("SIGTERM", () => {
  if (leaving) return;
  leaving = true;
  server.close(async () => {
    await queue.close();
    await leave();
  });
});
