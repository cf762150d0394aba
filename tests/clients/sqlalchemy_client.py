"""SQLAlchemy as applications use it, over psycopg2 and over psycopg 3: engine and its pool, ORM, savepoints, streams."""

import sqlalchemy
from sqlalchemy import ForeignKey, func, inspect, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, selectinload

from crowd import URL, Crowd, together

CLIENTS = 6


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    books: Mapped[list["Book"]] = relationship(back_populates="author")


class Book(Base):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"))
    author: Mapped[Author] = relationship(back_populates="books")


crowd = Crowd()


def use(engine):
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    assert set(inspect(engine).get_table_names()) >= {"authors", "books"}

    # The engine's pool opens all it may, and each keeps its connection.
    opened = [engine.connect() for _ in range(CLIENTS)]
    crowd.assert_fewer_than(opened)

    # One connection, one statement, both server connections; psycopg 3 prepares it after five times.
    one = opened[0]
    statement = text("select :n * 2, pg_backend_pid()")

    def ask():
        for n in range(8):
            row = one.execute(statement, {"n": n}).one()
            assert row[0] == n * 2
            one.rollback()
        return row[1]

    crowd.moves(ask)
    for connection in opened:
        connection.close()

    def work(number):
        with Session(engine) as session, session.begin():
            author = Author(name=f"author {number}", books=[Book(title=f"book {n}") for n in range(50)])
            session.add(author)
            session.flush()
            try:
                with session.begin_nested():
                    session.add(Author(name=f"author {number}"))
                    session.flush()
                raise AssertionError("a name twice")
            except sqlalchemy.exc.IntegrityError:
                pass
            session.add(Book(title="after the savepoint", author=author))
        try:
            with Session(engine) as session, session.begin():
                session.add(Author(name=f"rolled back {number}"))
                session.flush()
                raise KeyError
        except KeyError:
            pass
        with Session(engine) as session:
            found = session.scalars(
                select(Author).where(Author.name == f"author {number}").options(selectinload(Author.books))
            ).one()
            assert len(found.books) == 51

    together(work, CLIENTS)
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(Author)) == CLIENTS
        # A server-side cursor, read in parts.
        titles = session.scalars(select(Book.title).execution_options(yield_per=40))
        assert sum(1 for _ in titles) == CLIENTS * 51

    # An isolation level lasts as long as the connection is out of the engine's pool, and not longer.
    with engine.connect().execution_options(isolation_level="SERIALIZABLE") as connection:
        assert connection.scalar(text("show transaction_isolation")) == "serializable"
    with engine.connect() as connection:
        assert connection.scalar(text("show transaction_isolation")) == "read committed"

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        driver = connection.connection.driver_connection
        try:
            with crowd.calls_once_running("pg_sleep(20)", driver.cancel):
                connection.execute(text("select pg_sleep(20)"))
            raise AssertionError("not cancelled")
        except sqlalchemy.exc.OperationalError as error:
            assert error.orig.__class__.__name__ == "QueryCanceled", error
        assert connection.scalar(text("select 'after the cancel'")) == "after the cancel"


for name in ("postgresql+psycopg2", "postgresql+psycopg"):
    engine = sqlalchemy.create_engine(URL.replace("postgres", name, 1), pool_size=CLIENTS)
    use(engine)
    engine.dispose()
print("well")
