"""The other clients of the pool, for the Python programs beside this one.

The pool has two server connections. The crowd takes both and gives one back, so that the next transaction of the client
under test has to run where its last one did not.
"""

import contextlib
import os
import threading
import time

import psycopg

URL = os.environ["DATABASE_URL"]
SERVER_CONNECTIONS = 2
SECONDS = 15


class Crowd:
    def __init__(self):
        self.holders = [psycopg.connect(URL) for _ in range(SERVER_CONNECTIONS)]
        self.observer = psycopg.connect(URL, autocommit=True)

    @contextlib.contextmanager
    def elsewhere(self, pid):
        """Within it, no transaction can run on the backend `pid`, and one can on the other."""
        # That both can be held proves that no client keeps one for itself.
        held = {holder.execute("select pg_backend_pid()").fetchone()[0]: holder for holder in self.holders}
        assert len(held) == SERVER_CONNECTIONS, held
        assert pid in held, (pid, held)
        for other, holder in held.items():
            if other != pid:
                holder.rollback()
        yield
        held[pid].rollback()

    def moves(self, ask):
        """Has `ask`, which gives its backend's pid, run on both server connections."""
        first = ask()
        with self.elsewhere(first):
            second = ask()
        assert first != second, first
        with self.elsewhere(second):
            assert ask() == first

    def assert_fewer_than(self, clients):
        """All of `clients` are connected now, and the server has only the pool's connections."""
        count = "select count(*) from pg_stat_activity where usename = current_user"
        assert self.observer.execute(count).fetchone()[0] <= SERVER_CONNECTIONS < len(clients)

    def wait_until_running(self, part):
        """Until a statement with `part` in it runs on the server."""
        self.wait_for(f"running: {part}", lambda: self.running(part) == 1)

    def wait_until_gone(self, part):
        """Until no statement with `part` in it runs on the server."""
        self.wait_for(f"gone: {part}", lambda: self.running(part) == 0)

    def running(self, part):
        count = (
            "select count(*) from pg_stat_activity"
            " where state = 'active' and pid <> pg_backend_pid() and strpos(query, %s) > 0"
        )
        return self.observer.execute(count, (part,)).fetchone()[0]

    @contextlib.contextmanager
    def calls_once_running(self, part, cancel):
        """Calls `cancel` from a thread of its own as soon as the statement with `part` in it, run within, is under way."""

        def watch():
            self.wait_until_running(part)
            cancel()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        yield
        thread.join(SECONDS)
        assert not thread.is_alive()

    @staticmethod
    def wait_for(what, condition):
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {what}"
            time.sleep(0.005)


def together(work, times):
    """Runs `work(0)`, `work(1)`, … at once, each in a thread; a failure of any is one of the program."""
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            failures.append(repr(error))

    threads = [threading.Thread(target=guarded, args=(number,), daemon=True) for number in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
