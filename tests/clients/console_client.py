"""The console as monitoring agents use it: psycopg2 and psycopg, columns by name, in both protocols."""

import asyncio
import re
from urllib.parse import urlsplit

import asyncpg
import psycopg
import psycopg.rows
import psycopg2
import psycopg2.extras

from crowd import URL

parts = urlsplit(URL)


def url(database):
    return parts._replace(path=f"/{database}").geturl()


# Traffic, so that there is something to count.
with psycopg.connect(URL) as application:
    for n in range(20):
        application.execute("select %s::int", (n,))
        application.commit()

COUNTED = ["total_xact_count", "total_query_count", "total_received", "total_sent", "total_query_time"]
POOL_COLUMNS = ["cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_login", "maxwait", "maxwait_us"]


def agent(rows_of):
    """What prometheus' pgbouncer_exporter reads."""
    version = rows_of("SHOW VERSION")[0]["version"]
    assert re.findall(r"\d+\.\d+\.\d+", version)[0] == "1.18.0", version
    stats = {row["database"]: row for row in rows_of("SHOW STATS;")}
    assert all(float(stats["app"][name]) > 0 for name in COUNTED), stats
    assert float(stats["app"]["total_xact_count"]) >= 20, stats
    pool = next(row for row in rows_of("SHOW POOLS") if row["database"] == "app")
    assert pool["user"] == "app" and pool["pool_mode"] == "transaction"
    assert all(float(pool[name]) >= 0 for name in POOL_COLUMNS), pool
    database = next(row for row in rows_of("SHOW DATABASES") if row["name"] == "app")
    assert (database["pool_size"], database["paused"], database["disabled"]) == (2, 0, 0), database
    assert database["current_connections"] >= 1
    lists = {row["list"]: int(row["items"]) for row in rows_of("SHOW LISTS")}
    assert lists["used_clients"] >= 1 and lists["databases"] == 2, lists
    config = {row["key"]: row["value"] for row in rows_of("SHOW CONFIG")}
    assert float(config["max_client_conn"]) == 10_000 and float(config["max_user_connections"]) == 0
    assert "app-secret" not in str(config)
    mine = [row for row in rows_of("SHOW CLIENTS") if row["database"] == "pgbouncer"]
    assert any(row["application_name"] == "agent" for row in mine), mine


# An agent of old: autocommit, simple queries.
old = psycopg2.connect(url("pgbouncer"), application_name="agent")
old.set_session(autocommit=True)


def simple(sql):
    with old.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


agent(simple)
try:
    simple("SELECT 1")
    raise AssertionError("it is no database")
except psycopg2.Error as error:
    assert error.pgcode == "42601", error.pgcode
agent(simple)
old.close()

# One that forgets autocommit: BEGIN comes first.
with psycopg2.connect(url("tidegate")) as connection, connection.cursor() as cursor:
    cursor.execute("SHOW VERSION")
    assert cursor.fetchone()
    connection.rollback()
connection.close()

# psycopg: simple at first, prepared statements after some times, and binary results.
with psycopg.connect(url("pgbouncer"), application_name="agent") as connection:
    connection.prepare_threshold = 2

    def prepared(sql):
        with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return cursor.execute(sql).fetchall()

    for _ in range(5):
        agent(prepared)
        connection.commit()
    texts, binaries = (
        connection.cursor(binary=binary).execute("SHOW LISTS").fetchall() for binary in (False, True)
    )
    assert texts[0] == binaries[0] == ("databases", 2), (texts, binaries)
    binary = connection.cursor(binary=True).execute("SHOW STATS_TOTALS").fetchall()
    assert binary[0][0] == "app" and int(binary[0][1]) >= 20, binary


# asyncpg: the extended protocol and binary results only.
async def modern():
    connection = await asyncpg.connect(url("pgbouncer"), server_settings={"application_name": "agent"})
    rows = await connection.fetch("SHOW DATABASES")
    assert [row["name"] for row in rows] == ["app", "pgbouncer"], rows
    stats = await connection.fetchrow("SHOW STATS")
    assert stats["database"] == "app" and stats["total_xact_count"] >= 20, stats
    assert await connection.execute("RECONNECT app") == "RECONNECT"
    await connection.close()


asyncio.run(modern())
print("well")
