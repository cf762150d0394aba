"""psycopg2 as applications use it: its pool, server-side cursors, COPY, LISTEN, isolation levels, cancel, threads."""

import io
import select

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import psycopg2.extras
import psycopg2.pool

from crowd import URL, Crowd, together

crowd = Crowd()
pool = psycopg2.pool.ThreadedConnectionPool(6, 6, URL)
connections = [pool.getconn() for _ in range(6)]
one, two = connections[:2]
crowd.assert_fewer_than(connections)


def fetch(connection, sql, values=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall()


# The session's own settings, and the same statement, on both server connections.
one.set_client_encoding("LATIN1")
one.set_session(isolation_level="REPEATABLE READ", readonly=True)


def ask():
    with one:
        rows = fetch(one, "select %s::int * 2, %s::text, pg_backend_pid()", (21, "ü"))
        assert rows[0][:2] == (42, "ü"), rows
        assert fetch(one, "show transaction_isolation") == [("repeatable read",)]
        assert fetch(one, "show transaction_read_only") == [("on",)]
        assert fetch(one, "show client_encoding") == [("LATIN1",)]
    return rows[0][2]


crowd.moves(ask)
with two:
    assert fetch(two, "show client_encoding") == [("UTF8",)]
    assert fetch(two, "show transaction_isolation") == [("read committed",)]
one.set_session(isolation_level="DEFAULT", readonly="DEFAULT")
one.set_client_encoding("UTF8")

# COPY both ways; what was committed is there, what was rolled back is not.
with one, one.cursor() as cursor:
    cursor.execute("create table kept (id int, name text)")
    lines = "".join(f"{n}\tname {n}\n" for n in range(2000))
    cursor.copy_expert("copy kept from stdin", io.StringIO(lines))
with two.cursor() as cursor:
    psycopg2.extras.execute_values(cursor, "insert into kept values %s", [(n, "gone") for n in range(500)])
two.rollback()
with two, two.cursor() as cursor:
    copied = io.StringIO()
    cursor.copy_expert("copy kept to stdout", copied)
    assert copied.getvalue() == lines
try:
    with two, two.cursor() as cursor:
        cursor.copy_expert("copy kept from stdin", io.StringIO("not a number\tx\n"))
    raise AssertionError("bad data passed")
except psycopg2.errors.InvalidTextRepresentation:
    pass


def work(number):
    connection = connections[number]
    for n in range(10):
        with connection:
            assert fetch(connection, "select %s::int + %s::int", (number, n)) == [(number + n,)]
    with connection, connection.cursor(name=f"portal{number}") as cursor:
        cursor.itersize = 300
        cursor.execute("select id from kept order by id")
        assert [row[0] for row in cursor] == list(range(2000))
    try:
        with connection:
            fetch(connection, "select 1/0")
        raise AssertionError("division by zero passed")
    except psycopg2.errors.DivisionByZero:
        pass


together(work, len(connections))

# A cursor that outlives its transaction.
with two.cursor(name="held", withhold=True) as cursor:
    cursor.execute("select id from kept order by id")
    assert len(cursor.fetchmany(10)) == 10
    two.commit()
    assert fetch(two, "select 1") == [(1,)]
    two.commit()
    assert cursor.fetchmany(2) == [(10,), (11,)]
two.commit()

# LISTEN, and words that come while the connection does nothing.
one.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
with one.cursor() as cursor:
    cursor.execute("listen news")
    with two:
        fetch(two, "select pg_notify('news', n::text) from generate_series(1, 3) as n")
    heard = []
    while len(heard) < 3:
        assert select.select([one], [], [], 15)[0], heard
        one.poll()
        heard += [(notice.channel, notice.payload) for notice in one.notifies]
        one.notifies.clear()
    assert heard == [("news", "1"), ("news", "2"), ("news", "3")], heard
    cursor.execute("unlisten news")

# A cancel ends the statement that runs, and the connection goes on.
try:
    with crowd.calls_once_running("pg_sleep(20)", one.cancel):
        fetch(one, "select pg_sleep(20)")
    raise AssertionError("not cancelled")
except psycopg2.errors.QueryCanceled:
    pass
assert fetch(one, "select 'after the cancel'") == [("after the cancel",)]
crowd.moves(lambda: fetch(one, "select pg_backend_pid()")[0][0])
crowd.assert_fewer_than(connections)
pool.closeall()
print("well")
