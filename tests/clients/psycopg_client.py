"""psycopg 3 as applications use it: pipelines, server-side statements, COPY, notifications, cancel, errors, threads."""

import psycopg

from crowd import SECONDS, URL, Crowd, together

crowd = Crowd()


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


def cancelled(connection):
    """A cancel ends the statement that runs, and the connection goes on."""
    try:
        with crowd.calls_once_running("pg_sleep(20)", connection.cancel_safe):
            connection.execute("select pg_sleep(20)")
        raise AssertionError("not cancelled")
    except psycopg.errors.QueryCanceled:
        pass
    assert connection.execute("select 'after the cancel'").fetchone() == ("after the cancel",)


with psycopg.connect(URL, autocommit=True) as connection:
    # One statement, prepared at once, and the session's own settings, on both server connections.
    connection.execute("set work_mem = '5MB'; set timezone = 'Asia/Tokyo'")
    shown = "select %s::int * 2, current_setting('work_mem'), current_setting('timezone'), pg_backend_pid()"

    def ask():
        row = connection.execute(shown, (21,), prepare=True).fetchone()
        assert row[:3] == (42, "5MB", "Asia/Tokyo"), row
        return row[3]

    crowd.moves(ask)

    # In a pipeline, too; what comes behind an error in it is not done.
    with connection.pipeline():
        asked = [connection.execute("select %s::int, pg_backend_pid()", (n,), prepare=True) for n in range(10)]
    assert len({cursor.fetchone()[1] for cursor in asked}) == 1
    connection.execute("create table piped (id int)")
    try:
        with connection.pipeline() as pipeline:
            connection.execute("insert into piped values (1)")
            pipeline.sync()
            connection.execute("insert into piped values (2)")
            connection.execute("select 1/0")
            connection.execute("insert into piped values (3)")
        raise AssertionError("division by zero passed")
    except (psycopg.errors.DivisionByZero, psycopg.errors.PipelineAborted):
        pass
    assert connection.execute("select array_agg(id) from piped").fetchone() == ([1],)
    crowd.moves(ask)

    connection.execute("create table copied (id int, name text)")
    with connection.cursor().copy("copy copied from stdin") as copy:
        for n in range(2000):
            copy.write_row((n, f"name {n}"))
    with connection.cursor().copy("copy copied to stdout") as copy:
        assert sum(1 for _ in copy.rows()) == 2000
    with connection.cursor().copy("copy (select id, name from copied where id = 7) to stdout (format binary)") as copy:
        copy.set_types(["int4", "text"])
        assert list(copy.rows()) == [(7, "name 7")]
    try:
        with connection.cursor().copy("copy copied from stdin") as copy:
            copy.write_row((1, "given up"))
            raise KeyError
    except KeyError:
        pass
    with connection.transaction():
        connection.execute("delete from copied where id < 10")
    try:
        with connection.transaction():
            connection.execute("delete from copied")
            raise KeyError
    except KeyError:
        pass
    assert connection.execute("select count(*) from copied").fetchone() == (1990,)

    cancelled(connection)

    together(work, 12)

    # Notifications come while the connection does nothing.
    with psycopg.connect(URL, autocommit=True) as speaker:
        connection.execute("listen news")
        for n in range(3):
            speaker.execute("select pg_notify('news', %s)", (str(n),))
            heard = [(notify.channel, notify.payload) for notify in connection.notifies(timeout=SECONDS, stop_after=1)]
            assert heard == [("news", str(n))], heard
        connection.execute("unlisten news")
        speaker.execute("notify news")
        assert list(connection.notifies(timeout=0.1)) == []
    assert ask()

# The newest protocol that its libpq knows: cancel keys are long there.
with psycopg.connect(URL, autocommit=True, max_protocol_version="latest") as connection:
    assert connection.info.full_protocol_version == 30002
    connection.execute("set work_mem = '5MB'; set timezone = 'Asia/Tokyo'")
    crowd.moves(ask)
    cancelled(connection)
print("well")
