"""Django as applications use it: persistent connections with health checks, ORM, atomic blocks, `.iterator()`, threads.

Its manual tells people to switch server-side cursors off behind a transaction pooler: here they stay on.
"""

import threading
from urllib.parse import urlsplit

import django
from django.conf import settings

from crowd import URL, Crowd, together

CLIENTS = 6

url = urlsplit(URL)
database = {
    "ENGINE": "django.db.backends.postgresql",
    "HOST": url.hostname,
    "PORT": url.port,
    "USER": url.username,
    "PASSWORD": url.password,
    "NAME": url.path.lstrip("/"),
    "CONN_MAX_AGE": 60,
    "CONN_HEALTH_CHECKS": True,
}
settings.configure(
    DATABASES={"default": database, "bound": {**database, "OPTIONS": {"server_side_binding": True}}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    TIME_ZONE="Europe/Berlin",
    USE_TZ=True,
)
django.setup()

from django.db import IntegrityError, OperationalError, close_old_connections, connections, models, transaction  # noqa: E402


class Book(models.Model):
    title = models.CharField(max_length=100, unique=True)
    pages = models.IntegerField()
    added = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "library"


crowd = Crowd()


def fetch(alias, sql, values=()):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchone()


def use(alias):
    books = Book.objects.using(alias)
    with connections[alias].schema_editor() as editor:
        editor.create_model(Book)
    # What a request does at its begin and end: the connection, with CONN_MAX_AGE, outlives it.
    kept = connections[alias].connection
    close_old_connections()

    def ask():
        found = fetch(alias, "select %s::int * 2, current_setting('TimeZone'), pg_backend_pid()", (21,))
        assert found[:2] == (42, "UTC"), found
        return found[2]

    crowd.moves(ask)
    assert connections[alias].connection is kept

    books.bulk_create(Book(title=f"book {n}", pages=n) for n in range(1000))
    assert books.filter(pages__gte=990).count() == 10

    with transaction.atomic(using=alias):
        first = books.select_for_update().get(title="book 1")
        first.pages = 5000
        first.save()
        try:
            with transaction.atomic(using=alias):
                books.create(title="book 1", pages=0)
            raise AssertionError("a title twice")
        except IntegrityError:
            pass
        # The savepoint took the error: the block goes on.
        books.create(title="kept", pages=0)
    try:
        with transaction.atomic(using=alias):
            books.all().delete()
            raise KeyError
    except KeyError:
        pass
    assert books.count() == 1001
    assert books.get(title="book 1").pages == 5000

    # Outside a transaction it is a cursor WITH HOLD; other statements of the same session run in between.
    for seen, book in enumerate(books.order_by("id").iterator(chunk_size=100)):
        if seen % 250 == 0:
            assert books.get(pk=book.pk) == book
    assert seen == 1000
    with transaction.atomic(using=alias):
        assert sum(1 for _ in books.iterator(chunk_size=100)) == 1001
    # Nothing is left of it: the server connections are free again.
    crowd.moves(ask)

    there = threading.Barrier(CLIENTS)

    def work(number):
        try:
            fetch(alias, "select 1")
            if there.wait(15) == 0:
                crowd.assert_fewer_than(range(CLIENTS))
            there.wait(15)
            for n in range(10):
                with transaction.atomic(using=alias):
                    book = books.select_for_update().get(title="kept")
                    book.pages += 1
                    book.save(update_fields=["pages"])
                close_old_connections()
        finally:
            connections[alias].close()

    together(work, CLIENTS)
    # No update was lost between the threads.
    assert books.get(title="kept").pages == CLIENTS * 10

    try:
        with crowd.calls_once_running("pg_sleep(20)", connections[alias].connection.cancel):
            fetch(alias, "select pg_sleep(20)")
        raise AssertionError("not cancelled")
    except OperationalError as error:
        assert error.__cause__.sqlstate == "57014", error
    assert fetch(alias, "select 'after the cancel'") == ("after the cancel",)
    with connections[alias].schema_editor() as editor:
        editor.delete_model(Book)
    connections[alias].close()


for alias in ("default", "bound"):
    use(alias)
print("well")
