//! The tables of SHOW: PgBouncer's columns and units, filled from plain data. No IO.
//!
//! Source: PgBouncer's manual, "Admin console", and what PgBouncer 1.18 answers, with which a test compares.

use std::collections::{BTreeMap, HashMap};

use super::averages::{Counts, Periods, Snapshot, microseconds};
use super::command::Show;
use super::table::Kind::{Int4, Int8, Numeric, Text};
use super::table::{Columns, Table, Value};
use crate::postgres::orders::Entry;
use crate::status::{ClientStatus, Holder, PoolStatus, ServerStatus};

/// Everything there is to show, at one moment.
#[derive(Debug, Default)]
pub(super) struct Sight {
    pub(super) databases: Vec<Database>,
    /// Empty where nobody asks for them.
    pub(super) clients: Vec<ClientStatus>,
    pub(super) servers: Vec<ServerStatus>,
    /// Clients, and those of consoles among them.
    pub(super) used: usize,
    pub(super) consoles: usize,
    pub(super) now_ms: u64,
    pub(super) client_limit: usize,
    pub(super) reserve: usize,
    /// Names and pool modes.
    pub(super) users: Vec<(String, Option<&'static str>)>,
    /// Bytes of one session, and of one server connection.
    pub(super) sizes: (usize, usize),
    /// Our own port, for the row about this console.
    pub(super) port: u16,
    /// Commands that consoles were given.
    pub(super) commands: u64,
}

/// What clients know as one database.
#[derive(Debug)]
pub(super) struct Database {
    /// As the console names it.
    pub(super) name: String,
    pub(super) pools: Vec<PoolStatus>,
    pub(super) entry: Entry,
    /// Who everybody logs in as, if all do.
    pub(super) user: Option<String>,
}

/// The database that the console itself is.
pub(super) const OURS: &str = "pgbouncer";
/// What a console's client has for a pool.
pub(super) const POOL: &str = "console";

const STATS: Columns = &[
    ("database", Text),
    ("total_xact_count", Numeric),
    ("total_query_count", Numeric),
    ("total_received", Numeric),
    ("total_sent", Numeric),
    ("total_xact_time", Numeric),
    ("total_query_time", Numeric),
    ("total_wait_time", Numeric),
    ("avg_xact_count", Numeric),
    ("avg_query_count", Numeric),
    ("avg_recv", Numeric),
    ("avg_sent", Numeric),
    ("avg_xact_time", Numeric),
    ("avg_query_time", Numeric),
    ("avg_wait_time", Numeric),
];

/// Totals alone, and averages alone.
const STATS_PART: Columns = &[
    ("database", Text),
    ("xact_count", Numeric),
    ("query_count", Numeric),
    ("bytes_received", Numeric),
    ("bytes_sent", Numeric),
    ("xact_time", Numeric),
    ("query_time", Numeric),
    ("wait_time", Numeric),
];

const TOTALS: Columns = &[("name", Text), ("value", Numeric)];

const TOTALS_NAMES: [&str; 7] = [
    "xact_count",
    "query_count",
    "client_bytes",
    "server_bytes",
    "xact_time",
    "query_time",
    "wait_time",
];

const POOLS: Columns = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int4),
    ("cl_waiting", Int4),
    ("cl_active_cancel_req", Int4),
    ("cl_waiting_cancel_req", Int4),
    ("sv_active", Int4),
    ("sv_active_cancel", Int4),
    ("sv_being_canceled", Int4),
    ("sv_idle", Int4),
    ("sv_used", Int4),
    ("sv_tested", Int4),
    ("sv_login", Int4),
    ("maxwait", Int4),
    ("maxwait_us", Int4),
    ("pool_mode", Text),
];

const DATABASES: Columns = &[
    ("name", Text),
    ("host", Text),
    ("port", Int4),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int4),
    ("min_pool_size", Int4),
    ("reserve_pool", Int4),
    ("pool_mode", Text),
    ("max_connections", Int4),
    ("current_connections", Int4),
    ("paused", Int4),
    ("disabled", Int4),
];

/// Of clients, and of servers.
const ENDS: Columns = SOCKETS.split_at(18).0;

const SOCKETS: Columns = &[
    ("type", Text),
    ("user", Text),
    ("database", Text),
    ("state", Text),
    ("addr", Text),
    ("port", Int4),
    ("local_addr", Text),
    ("local_port", Int4),
    ("connect_time", Text),
    ("request_time", Text),
    ("wait", Int4),
    ("wait_us", Int4),
    ("close_needed", Int4),
    ("ptr", Text),
    ("link", Text),
    ("remote_pid", Int4),
    ("tls", Text),
    ("application_name", Text),
    ("recv_pos", Int4),
    ("pkt_pos", Int4),
    ("pkt_remain", Int4),
    ("send_pos", Int4),
    ("send_remain", Int4),
    ("pkt_avail", Int4),
    ("send_avail", Int4),
];

const LISTS: Columns = &[("list", Text), ("items", Int4)];
const VERSION: Columns = &[("version", Text)];
const USERS: Columns = &[("name", Text), ("pool_mode", Text)];
const MEM: Columns =
    &[("name", Text), ("size", Int4), ("used", Int4), ("free", Int4), ("memtotal", Int4)];
const DNS_HOSTS: Columns = &[("hostname", Text), ("ttl", Int8), ("addrs", Text)];
const DNS_ZONES: Columns = &[("zonename", Text), ("serial", Int8), ("count", Int4)];
const STATE: Columns = &[("key", Text), ("value", Text)];

/// Not one of PgBouncer's.
const HOLDERS: Columns = &[
    ("database", Text),
    ("user", Text),
    ("client", Int8),
    ("application_name", Text),
    ("addr", Text),
    ("server_pid", Int8),
    ("phase", Text),
    ("phase_us", Int8),
    ("held_us", Int8),
    ("pin", Text),
    ("statement", Text),
];

impl Show {
    /// The columns of its table.
    pub(super) fn columns(self) -> Columns {
        Sight::default().table(self, &Periods::default(), &Snapshot::default()).columns
    }
}

impl Sight {
    /// The table of one SHOW; what is neither here nor elsewhere shows nothing.
    pub(super) fn table(&self, show: Show, periods: &Periods, now: &Snapshot) -> Table {
        let empty = |columns| Table { columns, rows: Vec::new() };
        match show {
            Show::Stats => self.stats(periods, now),
            Show::StatsTotals => part(&self.totals(now)),
            Show::StatsAverages => part(&self.averages(periods, now)),
            Show::Totals => self.sums(periods, now),
            Show::Pools => self.pools(),
            Show::Databases => self.databases(),
            Show::Clients => self.ends(ENDS, "", Some("C"), Which::All),
            Show::Servers => self.ends(ENDS, "", Some("S"), Which::All),
            Show::Sockets => self.ends(SOCKETS, "_", None, Which::All),
            Show::ActiveSockets => self.ends(SOCKETS, "_", None, Which::Active),
            Show::Lists => self.lists(),
            Show::Version => {
                Table { columns: VERSION, rows: vec![vec![Value::from(super::VERSION)]] }
            }
            Show::Users => self.users(),
            Show::Mem => self.mem(),
            Show::DnsHosts => empty(DNS_HOSTS),
            Show::DnsZones => empty(DNS_ZONES),
            Show::State => self.state(),
            Show::Holders => self.holders(),
            Show::Help | Show::Config | Show::Fds => empty(&[]),
        }
    }

    /// What was counted until now.
    pub(super) fn counts(&self) -> BTreeMap<String, Counts> {
        self.databases.iter().map(|database| (database.name.clone(), database.counts())).collect()
    }

    /// What clients and servers have to do with each other.
    fn links(&self) -> Links<'_> {
        let mut links = Links::default();
        for database in &self.databases {
            let pools = database.pools.iter();
            links.databases.extend(pools.map(|pool| (pool.name.as_str(), database.name.as_str())));
        }
        for server in &self.servers {
            let holder = server.holder.as_ref().map(|holder| (holder.client, server.server_pid));
            links.servers.extend(holder);
        }
        links
    }

    fn totals(&self, now: &Snapshot) -> Vec<(String, Counts)> {
        let mine = now.counts.iter().map(|(name, counts)| (name.clone(), *counts));
        let commands = self.commands;
        let ours = Counts { transactions: commands, requests: commands, ..Counts::default() };
        mine.chain([(OURS.to_owned(), ours)]).collect()
    }

    fn averages(&self, periods: &Periods, now: &Snapshot) -> Vec<(String, Counts)> {
        let names = now.counts.keys().map(String::as_str).chain([OURS]);
        names.map(|name| (name.to_owned(), periods.averages(name, now))).collect()
    }

    fn stats(&self, periods: &Periods, now: &Snapshot) -> Table {
        let totals = self.totals(now).into_iter();
        let both = totals.zip(self.averages(periods, now));
        let row = |((name, total), (_, average)): ((String, Counts), (String, Counts))| {
            let numbers = numbers(&total).into_iter().chain(numbers(&average));
            [Value::from(name)].into_iter().chain(numbers.map(Value::from)).collect()
        };
        Table { columns: STATS, rows: both.map(row).collect() }
    }

    fn sums(&self, periods: &Periods, now: &Snapshot) -> Table {
        let sum = |of: &[(String, Counts)]| {
            let mut all = Counts::default();
            of.iter().for_each(|(_, counts)| all.add(counts));
            numbers(&all)
        };
        let rows = [("total", sum(&self.totals(now))), ("avg", sum(&self.averages(periods, now)))];
        let row = |(prefix, numbers): &(&str, [u64; 7])| {
            let named = TOTALS_NAMES.iter().zip(*numbers);
            named
                .map(|(name, number)| vec![format!("{prefix}_{name}").into(), number.into()])
                .collect::<Vec<Vec<Value>>>()
        };
        Table { columns: TOTALS, rows: rows.iter().flat_map(row).collect() }
    }

    fn pools(&self) -> Table {
        let databases = self.databases.iter();
        let mut rows: Vec<_> = databases.flat_map(Database::pool_rows).collect();
        let mut ours = vec![Value::from(OURS), Value::from(OURS), Value::from(self.consoles)];
        ours.extend(std::iter::repeat_n(Value::Number(0), POOLS.len() - 4));
        ours.push(Value::from("statement"));
        rows.push(ours);
        Table { columns: POOLS, rows }
    }

    fn databases(&self) -> Table {
        let mut rows: Vec<_> =
            self.databases.iter().filter_map(|database| database.row(self.reserve)).collect();
        let mut ours = vec![Value::from(OURS), Value::Null, u64::from(self.port).into()];
        ours.extend([Value::from(OURS), Value::from(OURS)]);
        ours.extend([0_u64, 0, 0].map(Value::from));
        ours.push(Value::from("statement"));
        ours.extend([0_u64, 0, 0, 0].map(Value::from));
        rows.push(ours);
        Table { columns: DATABASES, rows }
    }

    /// Clients (`C`), servers (`S`), or both.
    fn ends(&self, columns: Columns, link: &str, only: Option<&str>, which: Which) -> Table {
        let mut rows = Vec::new();
        let links = self.links();
        if only != Some("S") {
            let clients = self.clients.iter().filter(|one| which.takes(&one.state));
            rows.extend(clients.map(|client| self.client_row(client, link, &links)));
        }
        if only != Some("C") {
            let servers = self.servers.iter().filter(|one| which.takes(server_state(one)));
            rows.extend(servers.map(|server| self.server_row(server, link, &links)));
        }
        for row in &mut rows {
            // We keep no such buffers.
            row.resize(columns.len(), Value::Number(0));
        }
        Table { columns, rows }
    }

    fn client_row(&self, client: &ClientStatus, link: &str, links: &Links<'_>) -> Vec<Value> {
        let ClientStatus { pool, holder, state, since_ms, state_seconds, .. } = client;
        let prefix = if link.is_empty() { "" } else { "cl_" };
        let state_us = microseconds(*state_seconds);
        let wait_us = if state == "waiting" { state_us } else { 0 };
        let requested_ms = self.now_ms.saturating_sub(state_us / 1_000).max(*since_ms);
        let mut row = vec![
            Value::from("C"),
            holder.user.as_str().into(),
            links.database(pool, &holder.database).into(),
            // PgBouncer calls those active that have nothing to wait for.
            format!("{prefix}{}", if state == "waiting" { state } else { "active" }).into(),
        ];
        row.extend(address(&holder.address));
        row.extend(address(&client.local_address));
        row.extend([time(*since_ms).into(), time(requested_ms).into()]);
        row.extend([wait_us / 1_000_000, wait_us % 1_000_000, 0].map(Value::from));
        let server = links.servers.get(&holder.client);
        let linked = server.map(|pid| pointer(SERVER, *pid)).unwrap_or_default();
        row.extend([pointer(CLIENT, holder.client).into(), linked.into()]);
        row.extend([Value::Number(0), Value::from(""), holder.application_name.as_str().into()]);
        row
    }

    fn server_row(&self, server: &ServerStatus, link: &str, links: &Links<'_>) -> Vec<Value> {
        let prefix = if link.is_empty() { "" } else { "sv_" };
        let holder = server.holder.as_ref();
        let phase_us = holder.map(|holder| microseconds(holder.phase_seconds));
        let requested_ms = phase_us.map(|us| self.now_ms.saturating_sub(us / 1_000));
        let mut row = vec![
            Value::from("S"),
            server.user.as_str().into(),
            links.database(&server.pool, &server.database).into(),
            format!("{prefix}{}", server_state(server)).into(),
        ];
        row.extend(address(&server.address));
        row.extend(address(&server.local_address));
        row.extend([time(server.since_ms).into()]);
        row.push(time(requested_ms.unwrap_or(server.since_ms).max(server.since_ms)).into());
        row.extend([0_u64, 0, 0].map(Value::from));
        let linked = holder.map(|holder| pointer(CLIENT, holder.client)).unwrap_or_default();
        row.extend([pointer(SERVER, server.server_pid).into(), linked.into()]);
        row.push(u64::try_from(server.server_pid).unwrap_or(0).into());
        row.push(server.encryption.as_str().into());
        row.push(holder.map_or("", |holder| &holder.application_name).into());
        row
    }

    /// Server connections.
    fn open(&self) -> usize {
        let pools = self.databases.iter().flat_map(Database::each);
        pools.map(|pool| pool.servers.total()).sum()
    }

    fn lists(&self) -> Table {
        let pools = || self.databases.iter().flat_map(Database::each);
        // Connections to one server come from one budget.
        let mut budgets: BTreeMap<(&str, u16), (usize, usize)> = BTreeMap::new();
        for pool in pools() {
            let budget = budgets.entry((&pool.host, pool.port)).or_default();
            *budget = (pool.limit, budget.1 + pool.servers.total());
        }
        let used = self.used;
        let free: usize = budgets.values().map(|(limit, used)| limit.saturating_sub(*used)).sum();
        let rows = [
            ("databases", self.databases.len() + 1),
            ("users", self.users.len()),
            ("pools", self.databases.iter().map(|one| one.pools.len()).sum::<usize>() + 1),
            ("free_clients", self.client_limit.saturating_sub(used)),
            ("used_clients", used),
            ("login_clients", pools().map(|pool| pool.clients.greeting).sum()),
            ("free_servers", free),
            ("used_servers", self.open()),
            ("dns_names", 0),
            ("dns_zones", 0),
            ("dns_queries", 0),
            ("dns_pending", 0),
        ];
        let rows = rows.map(|(name, count)| vec![Value::from(name), Value::from(count)]);
        Table { columns: LISTS, rows: rows.to_vec() }
    }

    fn users(&self) -> Table {
        let mode = |mode: &Option<&str>| mode.map_or(Value::Null, Value::from);
        let rows = self.users.iter().map(|(name, of)| vec![name.as_str().into(), mode(of)]);
        Table { columns: USERS, rows: rows.collect() }
    }

    fn mem(&self) -> Table {
        let row = |name: &str, size: usize, used: usize| {
            let numbers = [size, used, 0, size.saturating_mul(used)].map(Value::from);
            [Value::from(name)].into_iter().chain(numbers).collect()
        };
        let (client, server) = self.sizes;
        let rows =
            vec![row("server_cache", server, self.open()), row("client_cache", client, self.used)];
        Table { columns: MEM, rows }
    }

    fn state(&self) -> Table {
        let mut pools = self.databases.iter().flat_map(|database| &database.pools).peekable();
        let paused = pools.peek().is_some() && pools.all(|pool| pool.paused);
        let word = |yes: bool| if yes { "yes" } else { "no" };
        let rows = [("active", word(!paused)), ("paused", word(paused)), ("suspended", "no")];
        Table { columns: STATE, rows: rows.map(|(key, is)| vec![key.into(), is.into()]).to_vec() }
    }

    fn holders(&self) -> Table {
        let mut rows = Vec::new();
        for database in &self.databases {
            let holders = database.pools.iter().flat_map(|pool| &pool.holders);
            rows.extend(holders.map(|holder| holder_row(&database.name, holder)));
        }
        Table { columns: HOLDERS, rows }
    }
}

#[derive(Default)]
struct Links<'a> {
    /// By the name of the pool.
    databases: HashMap<&'a str, &'a str>,
    /// The server's process of each client that has one.
    servers: HashMap<u64, i64>,
}

impl<'a> Links<'a> {
    fn database(&self, pool: &str, or: &'a str) -> &'a str {
        self.databases.get(pool).copied().unwrap_or(or)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    Active,
}

impl Which {
    fn takes(self, state: &str) -> bool {
        self == Self::All || state != "idle"
    }
}

impl Database {
    /// Its pools, those that count together once.
    fn each(&self) -> impl Iterator<Item = &PoolStatus> {
        let first = |at: usize, name: &str| {
            self.pools.iter().position(|pool| pool.name == name) == Some(at)
        };
        let pools = self.pools.iter().enumerate();
        pools.filter(move |(at, pool)| first(*at, &pool.name)).map(|(_, pool)| pool)
    }

    fn counts(&self) -> Counts {
        let mut all = Counts::default();
        self.each().for_each(|pool| all.add(&Counts::of(&pool.totals)));
        all
    }

    /// One for each user.
    fn pool_rows(&self) -> Vec<Vec<Value>> {
        let row = |pool: &PoolStatus| {
            let maxwait_us = microseconds(pool.queue.oldest_wait_ms / 1e3);
            let mut row = vec![Value::from(self.name.as_str()), pool.user.as_str().into()];
            let clients = [pool.clients.active + pool.clients.idle, pool.clients.waiting, 0, 0];
            let servers = [pool.servers.in_use(), 0, 0, pool.servers.idle, 0, 0];
            row.extend(clients.into_iter().chain(servers).map(Value::from));
            row.push(pool.servers.opening.into());
            row.extend([maxwait_us / 1_000_000, maxwait_us % 1_000_000].map(Value::from));
            row.push(pool.mode.as_str().into());
            row
        };
        self.each().map(row).collect()
    }

    fn row(&self, reserve: usize) -> Option<Vec<Value>> {
        let first = self.pools.first()?;
        let mode = self.pools.iter().all(|pool| pool.mode == first.mode);
        let open: usize = self.each().map(|pool| pool.servers.total()).sum();
        let mut row = vec![
            Value::from(self.name.as_str()),
            first.host.as_str().into(),
            u64::from(first.port).into(),
            first.database.as_str().into(),
            self.user.as_deref().map_or(Value::Null, Value::from),
        ];
        row.extend([first.limit_configured, first.idle_min, reserve].map(Value::from));
        row.push(if mode { first.mode.as_str().into() } else { Value::Null });
        let paused = usize::from(self.pools.iter().all(|pool| pool.paused));
        let disabled = usize::from(self.entry == Entry::Disabled);
        row.extend([first.limit, open, paused, disabled].map(Value::from));
        Some(row)
    }
}

fn part(of: &[(String, Counts)]) -> Table {
    let row = |(name, counts): &(String, Counts)| {
        let numbers = numbers(counts).map(Value::from);
        [Value::from(name.as_str())].into_iter().chain(numbers).collect()
    };
    Table { columns: STATS_PART, rows: of.iter().map(row).collect() }
}

fn numbers(counts: &Counts) -> [u64; 7] {
    let Counts { transactions, requests, received_bytes, sent_bytes, .. } = *counts;
    let Counts { transaction_us, query_us, wait_us, .. } = *counts;
    [transactions, requests, received_bytes, sent_bytes, transaction_us, query_us, wait_us]
}

fn server_state(server: &ServerStatus) -> &'static str {
    if server.holder.is_some() { "active" } else { "idle" }
}

fn holder_row(database: &str, holder: &Holder) -> Vec<Value> {
    vec![
        database.into(),
        holder.user.as_str().into(),
        holder.client.into(),
        holder.application_name.as_str().into(),
        holder.address.as_str().into(),
        u64::try_from(holder.server_pid).unwrap_or(0).into(),
        holder.phase.as_str().into(),
        microseconds(holder.phase_seconds).into(),
        microseconds(holder.held_seconds).into(),
        holder.pin.as_deref().map_or(Value::Null, Value::from),
        holder.statement.as_str().into(),
    ]
}

/// Address and port in columns of their own, as PgBouncer has them: `unix` and the port in the socket's name, if it has one.
fn address(text: &str) -> [Value; 2] {
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return [address.ip().to_string().into(), u64::from(address.port()).into()];
    }
    let name = text.rsplit_once(":0").and_then(|(path, _)| path.rsplit_once(".s.PGSQL."));
    let port = name.and_then(|(_, port)| port.parse::<u16>().ok()).unwrap_or(0);
    [Value::from("unix"), u64::from(port).into()]
}

/// What stands for clients and servers in the columns `ptr` and `link`: any text that tells them apart.
const CLIENT: u64 = 0x1_0000_0000;
const SERVER: u64 = 0x2_0000_0000;

fn pointer(kind: u64, number: impl TryInto<u64>) -> String {
    format!("{:#x}", kind | number.try_into().unwrap_or(0))
}

/// Milliseconds since 1970 as `2026-11-27 06:59:33 UTC`.
fn time(ms: u64) -> String {
    let seconds = ms / 1_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    // Days are counted from the first of March of year 0, so that leap days end a year; 400 years have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + later;
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399_999, "2000-02-28 23:59:59 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00 UTC"),
            (1_795_762_773_000, "2026-11-27 06:59:33 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn every_row_has_its_columns() {
        let pool = |name: &str, user: &str| PoolStatus {
            name: name.to_owned(),
            user: user.to_owned(),
            holders: vec![Holder::default()],
            ..PoolStatus::default()
        };
        let sight = Sight {
            databases: vec![Database {
                name: "app".to_owned(),
                pools: vec![pool("A", "a"), pool("B", "b"), pool("A", "a")],
                entry: Entry::Allowed,
                user: None,
            }],
            clients: vec![ClientStatus::default()],
            servers: vec![ServerStatus::default()],
            users: vec![("a".to_owned(), None)],
            ..Sight::default()
        };
        let now = Snapshot { counts: sight.counts(), ..Snapshot::default() };
        for show in [
            Show::Stats,
            Show::StatsTotals,
            Show::StatsAverages,
            Show::Totals,
            Show::Pools,
            Show::Databases,
            Show::Clients,
            Show::Servers,
            Show::Sockets,
            Show::ActiveSockets,
            Show::Lists,
            Show::Version,
            Show::Users,
            Show::Mem,
            Show::State,
            Show::Holders,
        ] {
            let table = sight.table(show, &Periods::default(), &now);
            assert!(!table.rows.is_empty() || show == Show::ActiveSockets, "{show:?}");
            for row in &table.rows {
                assert_eq!(row.len(), table.columns.len(), "{show:?}: {row:?}");
            }
        }
        assert_eq!(sight.pools().rows.len(), 3, "what counts together is one");
    }
}
