// The console through JDBC, in the simple and in the extended protocol.

import java.net.URI;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.util.Properties;

public class ConsoleClient {
    public static void main(String[] words) throws Exception {
        for (String mode : new String[] {"simple", "extended", "extendedForPrepared"}) {
            try (Connection console = connect(mode)) {
                work(console);
            }
        }
        System.out.println("well");
    }

    static Connection connect(String mode) throws SQLException {
        URI url = URI.create(System.getenv("DATABASE_URL"));
        String[] who = url.getUserInfo().split(":");
        Properties properties = new Properties();
        properties.setProperty("user", who[0]);
        properties.setProperty("password", who[1]);
        properties.setProperty("preferQueryMode", mode);
        properties.setProperty("ApplicationName", "console");
        String address = "jdbc:postgresql://" + url.getHost() + ":" + url.getPort() + "/pgbouncer";
        return DriverManager.getConnection(address, properties);
    }

    static void work(Connection console) throws SQLException {
        try (PreparedStatement lists = console.prepareStatement("SHOW LISTS")) {
            // It gets a name, and binary results, after five times.
            for (int time = 0; time < 8; time++) {
                try (ResultSet rows = lists.executeQuery()) {
                    check(rows.next() && rows.getString("list").equals("databases"));
                    check(rows.getInt("items") == 2);
                }
            }
        }
        try (Statement statement = console.createStatement()) {
            try (ResultSet rows = statement.executeQuery("SHOW STATS")) {
                check(rows.next() && rows.getBigDecimal("total_xact_count").signum() >= 0);
            }
            statement.execute("SET extra_float_digits = 3");
            statement.execute("RECONNECT app");
            statement.execute("RELOAD");
            try {
                statement.execute("SHOW NOTHING_OF_THE_KIND");
                check(false);
            } catch (SQLException refused) {
                check(refused.getSQLState() != null);
            }
        }
        check(console.isValid(5));
        console.setAutoCommit(false);
        try (Statement statement = console.createStatement()) {
            check(statement.executeQuery("SHOW VERSION").next());
        }
        console.commit();
    }

    static void check(boolean holds) {
        if (!holds) {
            throw new AssertionError();
        }
    }
}
