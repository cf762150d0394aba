"""asyncpg as applications use it: its own pool, cached statements, COPY, cursors, timeouts."""

import asyncio
import os

import asyncpg

URL = os.environ["DATABASE_URL"]


async def work(pool, number):
    for n in range(20):
        async with pool.acquire() as connection:
            value = await connection.fetchval("select $1::int * 2", n)
            assert value == n * 2
            async with connection.transaction():
                rows = await connection.fetch("select $1::text as a, generate_series(1, 5) as b", str(number))
                assert [row["b"] for row in rows] == [1, 2, 3, 4, 5]


async def main():
    pool = await asyncpg.create_pool(URL, min_size=10, max_size=10)
    await asyncio.gather(*(work(pool, n) for n in range(20)))
    async with pool.acquire() as connection:
        statement = await connection.prepare("select $1::int8 as n")
        for n in range(50):
            assert await statement.fetchval(n) == n
        await connection.execute("drop table if exists loaded; create table loaded (id int, name text)")
        await connection.copy_records_to_table("loaded", records=[(n, str(n)) for n in range(1000)])
        assert await connection.fetchval("select count(*) from loaded") == 1000
        async with connection.transaction():
            seen = 0
            async for _ in connection.cursor("select * from loaded", prefetch=100):
                seen += 1
            assert seen == 1000
        try:
            await connection.fetchval("select 1/0")
            raise AssertionError("division by zero passed")
        except asyncpg.DivisionByZeroError:
            pass
        try:
            await connection.fetchval("select pg_sleep(20)", timeout=0.5)
            raise AssertionError("no timeout")
        except asyncio.TimeoutError:
            pass
        assert await connection.fetchval("select 'after the cancel'") == "after the cancel"
        await connection.executemany("insert into loaded values ($1, $2)", [(n, "m") for n in range(100)])
    await pool.close()
    print("well")


asyncio.run(main())
