"""asyncpg as applications use it: its own pool, cached statements, COPY, cursors, listeners, timeouts."""

import asyncio
import io

import asyncpg

from crowd import SECONDS, URL, Crowd


async def fails(error, coroutine):
    try:
        await coroutine
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


async def work(pool, number):
    for n in range(20):
        async with pool.acquire() as connection:
            value = await connection.fetchval("select $1::int * 2", n)
            assert value == n * 2
            async with connection.transaction():
                rows = await connection.fetch("select $1::text as a, generate_series(1, 5) as b", str(number))
                assert [row["b"] for row in rows] == [1, 2, 3, 4, 5]


async def both_servers(crowd, connection):
    """The same statements and the session's own settings, on both server connections."""
    await connection.execute("set work_mem = '5MB'")
    statement = await connection.prepare(
        "select $1::int8 as n, current_setting('work_mem') as memory, pg_backend_pid() as pid"
    )

    async def ask():
        row = await statement.fetchrow(21)
        assert tuple(row)[:2] == (21, "5MB"), row
        # One that asyncpg keeps by itself.
        assert await connection.fetchval("select $1::int + 1", 41) == 42
        return row["pid"]

    first = await ask()
    with crowd.elsewhere(first):
        second = await ask()
        # For a type it does not know it asks the catalogue, with statements of its own.
        assert await connection.fetchval("select $1::mood", "ill") == "ill"
    assert first != second
    with crowd.elsewhere(second):
        assert await ask() == first
        assert await connection.fetchval("select array[$1::mood]", "ill") == ["ill"]


async def transactions(connection):
    await connection.execute("create table kept (id int primary key)")
    async with connection.transaction(isolation="serializable"):
        await connection.executemany("insert into kept values ($1)", [(n,) for n in range(100)])
        try:
            async with connection.transaction():
                await connection.execute("insert into kept values (99)")
            raise AssertionError("twice")
        except asyncpg.UniqueViolationError:
            pass
        # The savepoint took the error.
        await connection.execute("insert into kept values (100)")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("delete from kept")
    await transaction.rollback()
    # All or nothing of it.
    await fails(
        asyncpg.UniqueViolationError, connection.executemany("insert into kept values ($1)", [(101,), (99,)])
    )
    assert await connection.fetchval("select count(*) from kept") == 101
    assert await connection.fetchval("show transaction_isolation") == "read committed"


async def copies(connection):
    await connection.execute("create table loaded (id int, name text)")
    await connection.copy_records_to_table("loaded", records=[(n, str(n)) for n in range(1000)])
    out = io.BytesIO()
    await connection.copy_from_query("select id, name from loaded where id < $1", 500, output=out)
    assert out.getvalue().decode() == "".join(f"{n}\t{n}\n" for n in range(500))
    out.seek(0)
    await connection.copy_to_table("loaded", source=out)
    await fails(
        asyncpg.InvalidTextRepresentationError,
        connection.copy_to_table("loaded", source=io.BytesIO(b"not a number\tx\n")),
    )
    assert await connection.fetchval("select count(*) from loaded") == 1500
    async with connection.transaction():
        seen = 0
        async for _ in connection.cursor("select * from loaded", prefetch=100):
            seen += 1
        assert seen == 1500


async def cancels(crowd, connection):
    await fails(asyncpg.DivisionByZeroError, connection.fetchval("select 1/0"))
    await fails(asyncio.TimeoutError, connection.fetchval("select pg_sleep(20)", timeout=0.5))
    assert await connection.fetchval("select 'after the cancel'") == "after the cancel"
    # None of many cancels hits a statement that came after the one it meant.
    for n in range(10):
        task = asyncio.create_task(connection.fetchval(f"select pg_sleep(20), {n}"))
        await asyncio.to_thread(crowd.wait_until_running, f"pg_sleep(20), {n}")
        task.cancel()
        await fails(asyncio.CancelledError, task)
        assert await connection.fetchval("select 'after the task'") == "after the task"


async def notifications(connection, pool):
    """They come while the connection does nothing."""
    heard = asyncio.Queue()
    await connection.add_listener("news", lambda _connection, _pid, channel, word: heard.put_nowait((channel, word)))
    for n in range(3):
        await pool.execute("select pg_notify('news', $1)", str(n))
        assert await asyncio.wait_for(heard.get(), SECONDS) == ("news", str(n))
    await connection.reset()
    await pool.execute("notify news")
    assert await connection.fetchval("select 'heard'") == "heard"
    assert heard.empty()


async def main():
    crowd = Crowd()
    pool = await asyncpg.create_pool(URL, min_size=10, max_size=10)
    await pool.execute("create type mood as enum ('well', 'ill')")
    await asyncio.gather(*(work(pool, n) for n in range(20)))
    async with pool.acquire() as connection:
        await both_servers(crowd, connection)
        await transactions(connection)
        await copies(connection)
        await cancels(crowd, connection)
        assert await connection.fetchval("show work_mem") == "5MB"
    # The pool takes off what was set: with RESET ALL and more.
    async with pool.acquire() as connection:
        assert await connection.fetchval("show work_mem") == "4MB"
        await notifications(connection, pool)
    await pool.close()
    print("well")


asyncio.run(main())
