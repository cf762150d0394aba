"""psycopg 3 as applications use it: pipelines, server-side statements, COPY, errors, threads."""

import os
import threading

import psycopg

URL = os.environ["DATABASE_URL"]


def work(number):
    with psycopg.connect(URL) as connection:
        # After five times a statement is prepared on the server: go well past that.
        for n in range(15):
            row = connection.execute("select %s::int + %s::int, %s::text", (number, n, "x")).fetchone()
            assert row == (number + n, "x"), row
        connection.commit()
        with connection.pipeline():
            cursors = [connection.execute("select %s::int", (n,)) for n in range(20)]
        assert [cursor.fetchone()[0] for cursor in cursors] == list(range(20))
        connection.commit()
        try:
            connection.execute("select 1/0")
            raise AssertionError("division by zero passed")
        except psycopg.errors.DivisionByZero:
            connection.rollback()
        with connection.cursor(name=f"portal{number}") as cursor:
            cursor.execute("select generate_series(1, 500)")
            assert len(cursor.fetchall()) == 500
        connection.commit()


with psycopg.connect(URL, autocommit=True) as connection:
    connection.execute("drop table if exists copied")
    connection.execute("create table copied (id int, name text)")
    with connection.cursor().copy("copy copied from stdin") as copy:
        for n in range(2000):
            copy.write_row((n, f"name {n}"))
    with connection.cursor().copy("copy copied to stdout") as copy:
        assert sum(1 for _ in copy.rows()) == 2000
    with connection.transaction():
        connection.execute("delete from copied where id < 10")
    assert connection.execute("select count(*) from copied").fetchone() == (1990,)

failures = []


def guarded(number):
    try:
        work(number)
    except BaseException as error:
        failures.append(repr(error))


threads = [threading.Thread(target=guarded, args=(n,)) for n in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures
print("well")
