// JDBC as applications use it: statements that get a name after five times, cursors, batches, COPY, notifications, cancel.

import java.io.StringReader;
import java.io.StringWriter;
import java.net.URI;
import java.sql.BatchUpdateException;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;

public class JdbcClient {
    static final int SERVER_CONNECTIONS = 2;
    static final int MILLISECONDS = 15_000;

    interface Work<T> {
        T done() throws Exception;
    }

    public static void main(String[] words) throws Exception {
        try (Connection one = connect(); Connection other = connect(); Crowd crowd = new Crowd()) {
            statements(one, crowd);
            transactions(one, other);
            cursors(one);
            batches(one);
            copies(one);
            cancel(one, crowd);
            notifications(one, other);
        }
        System.out.println("well");
    }

    static Connection connect() throws SQLException {
        URI url = URI.create(System.getenv("DATABASE_URL"));
        String[] who = url.getUserInfo().split(":");
        String address = "jdbc:postgresql://" + url.getHost() + ":" + url.getPort() + url.getPath();
        return DriverManager.getConnection(address, who[0], who[1]);
    }

    // From the fifth time on a statement has a name on the server: on both server connections, with the session's settings.
    static void statements(Connection one, Crowd crowd) throws Exception {
        run(one, "set work_mem = '5MB'");
        String sql = "select ?::int * 2, current_setting('work_mem'), pg_backend_pid()";
        try (PreparedStatement twice = one.prepareStatement(sql)) {
            crowd.moves(() -> {
                int pid = 0;
                for (int n = 0; n < 8; n++) {
                    twice.setInt(1, n);
                    try (ResultSet rows = twice.executeQuery()) {
                        same(true, rows.next());
                        same(n * 2, rows.getInt(1));
                        same("5MB", rows.getString(2));
                        pid = rows.getInt(3);
                    }
                }
                return pid;
            });
        }
        try (ResultSet tables = one.getMetaData().getTables(null, "pg_catalog", "pg_class", null)) {
            same(true, tables.next());
        }
    }

    // It sends BEGIN as a prepared statement, ahead of the first one in the same piece.
    static void transactions(Connection one, Connection other) throws Exception {
        run(one, "create table kept (id int primary key, name text)");
        one.setAutoCommit(false);
        for (int n = 0; n < 10; n++) {
            run(one, "insert into kept values (" + n + ", 'name')");
            one.commit();
        }
        run(one, "delete from kept");
        one.rollback();
        Savepoint savepoint = one.setSavepoint();
        fails("23505", () -> run(one, "insert into kept values (1, 'twice')"));
        fails("25P02", () -> value(one, "select 1"));
        one.rollback(savepoint);
        run(one, "insert into kept values (10, 'behind the savepoint')");
        one.commit();
        one.setAutoCommit(true);
        same("11", value(other, "select count(*) from kept"));
        one.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        one.setReadOnly(true);
        one.setAutoCommit(false);
        same("serializable", value(one, "show transaction_isolation"));
        fails("25006", () -> run(one, "delete from kept"));
        one.rollback();
        one.setReadOnly(false);
        one.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        one.setAutoCommit(true);
        same("read committed", value(other, "show transaction_isolation"));
        fails("22012", () -> value(one, "select 1/0"));
        same("1", value(one, "select 1"));
    }

    // A portal with a name, read in parts.
    static void cursors(Connection one) throws Exception {
        one.setAutoCommit(false);
        try (Statement statement = one.createStatement()) {
            statement.setFetchSize(100);
            int seen = 0;
            try (ResultSet rows = statement.executeQuery("select generate_series(1, 950)")) {
                while (rows.next()) same(++seen, rows.getInt(1));
            }
            same(950, seen);
        }
        one.commit();
        one.setAutoCommit(true);
    }

    static void batches(Connection one) throws Exception {
        String sql = "insert into kept values (?, 'batch')";
        try (PreparedStatement insert = one.prepareStatement(sql, Statement.RETURN_GENERATED_KEYS)) {
            for (int n = 1000; n < 2000; n++) {
                insert.setInt(1, n);
                insert.addBatch();
            }
            same(1000, Arrays.stream(insert.executeBatch()).sum());
        }
        // All or nothing: one transaction.
        try (PreparedStatement insert = one.prepareStatement(sql)) {
            for (int n : new int[] {5000, 1000, 5001}) {
                insert.setInt(1, n);
                insert.addBatch();
            }
            try {
                insert.executeBatch();
                throw new AssertionError("twice");
            } catch (BatchUpdateException error) {
                same("23505", error.getSQLState());
            }
        }
        same("1011", value(one, "select count(*) from kept"));
    }

    static void copies(Connection one) throws Exception {
        run(one, "create table copied (id int, name text)");
        StringBuilder lines = new StringBuilder();
        for (int n = 0; n < 5000; n++) lines.append(n).append("\tname ").append(n).append('\n');
        CopyManager copy = one.unwrap(PGConnection.class).getCopyAPI();
        same(5000L, copy.copyIn("copy copied from stdin", new StringReader(lines.toString())));
        StringWriter out = new StringWriter();
        same(5000L, copy.copyOut("copy copied to stdout", out));
        same(lines.toString(), out.toString());
        fails("22P02", () -> copy.copyIn("copy copied from stdin", new StringReader("not a number\tx\n")));
        same("5000", value(one, "select count(*) from copied"));
    }

    static void cancel(Connection one, Crowd crowd) throws Exception {
        try (Statement statement = one.createStatement()) {
            AtomicReference<Throwable> trouble = new AtomicReference<>();
            Thread canceller = new Thread(() -> {
                try {
                    crowd.untilRunning("pg_sleep(20)");
                    statement.cancel();
                } catch (Throwable error) {
                    trouble.set(error);
                }
            });
            canceller.start();
            fails("57014", () -> statement.execute("select pg_sleep(20)"));
            canceller.join();
            same(null, trouble.get());
            statement.setQueryTimeout(1);
            fails("57014", () -> statement.execute("select pg_sleep(20)"));
        }
        same("after the cancel", value(one, "select 'after the cancel'"));
    }

    // They come while the connection does nothing.
    static void notifications(Connection one, Connection other) throws Exception {
        run(one, "listen news");
        PGConnection listener = one.unwrap(PGConnection.class);
        for (int n = 0; n < 3; n++) {
            value(other, "select pg_notify('news', '" + n + "')");
            var heard = listener.getNotifications(MILLISECONDS);
            same(1, heard.length);
            same("news", heard[0].getName());
            same(String.valueOf(n), heard[0].getParameter());
        }
        run(one, "unlisten news");
        run(other, "notify news");
        same(0, listener.getNotifications(100).length);
    }

    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    static String value(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            same(true, rows.next());
            return rows.getString(1);
        }
    }

    interface Attempt {
        void made() throws Exception;
    }

    static void fails(String state, Attempt attempt) throws Exception {
        try {
            attempt.made();
        } catch (SQLException error) {
            same(state, error.getSQLState());
            return;
        }
        throw new AssertionError("passed, without " + state);
    }

    static void same(Object wanted, Object got) {
        if (wanted == null ? got != null : !wanted.equals(got)) throw new AssertionError(got + " instead of " + wanted);
    }

    // What crowd.py is for the Python clients: takes both server connections and gives one back.
    static class Crowd implements AutoCloseable {
        final List<Connection> holders = new ArrayList<>();
        final Connection observer = connect();

        Crowd() throws SQLException {
            for (int n = 0; n < SERVER_CONNECTIONS; n++) {
                Connection holder = connect();
                holder.setAutoCommit(false);
                holders.add(holder);
            }
        }

        void moves(Work<Integer> ask) throws Exception {
            int first = ask.done();
            int second = elsewhere(first, ask);
            if (first == second) throw new AssertionError("it stays on " + first);
            same(first, elsewhere(second, ask));
        }

        // That both can be held proves that no client keeps one for itself.
        int elsewhere(int pid, Work<Integer> ask) throws Exception {
            Connection kept = null;
            List<Connection> freed = new ArrayList<>();
            for (Connection holder : holders) {
                if (value(holder, "select pg_backend_pid()").equals(String.valueOf(pid))) kept = holder;
                else freed.add(holder);
            }
            same(SERVER_CONNECTIONS - 1, freed.size());
            for (Connection holder : freed) holder.rollback();
            int there = ask.done();
            kept.rollback();
            return there;
        }

        void untilRunning(String part) throws Exception {
            String count = "select count(*) from pg_stat_activity where state = 'active' and pid <> pg_backend_pid()"
                + " and strpos(query, '" + part + "') > 0";
            long deadline = System.currentTimeMillis() + MILLISECONDS;
            while (!value(observer, count).equals("1")) {
                if (System.currentTimeMillis() > deadline) throw new AssertionError("waited in vain: " + part);
                Thread.sleep(5);
            }
        }

        @Override
        public void close() throws SQLException {
            for (Connection holder : holders) holder.close();
            observer.close();
        }
    }
}
