import { database, leave } from "./shared.mjs";

await database.query(
  "create table if not exists orders (id bigserial primary key, item text not null, state text not null default 'new')",
);
await leave();
