// What web and worker both need: as many connections as the application likes, as they are connections to tidegate.
import { Redis } from "ioredis";
import pg from "pg";

export const database = new pg.Pool({ connectionString: process.env.DATABASE_URL, max: 20 });

// BullMQ asks for no limit of its own on retries.
export const redis = new Redis(process.env.REDIS_URL, { maxRetriesPerRequest: null });

export async function leave() {
  await Promise.all([database.end(), redis.quit()]);
}
