//! What scripts run on: one server with two databases alike, one reached directly, the other through a pool, and clients
//! that block the pool's connections.

use std::io::Write;

use super::chance::Chance;
use super::runner::open;
use super::side::Client;
use super::{LOGINS, Profile};
use crate::support::pg::{
    Connection, Frame, Login, Reply, bind, close_statement, execute, parse, query, sync,
};
use crate::support::postgres::Postgres;
use crate::support::tidegate::{Setup, Tidegate};
use crate::support::{eventually, metrics};

/// The channel that ends what a session has heard.
pub const SENTINEL: &str = "sentinel";

const DIRECT: &str = "app";
const POOLED: &str = "other";

/// For how long a client waits for a connection of the pool: nobody has to.
const WAIT_MS: usize = 2_000;

/// Scripts between two VACUUMs: each leaves dead rows in the catalog.
const SCRIPTS_PER_VACUUM: usize = 200;

const TABLES: &str = "create schema two;
    create table t (id serial primary key, v text, n int default 0);
    create table later (id int, constraint once unique (id) deferrable initially deferred);
    create table x (a int, w text); insert into x values (1, 'public'), (2, 'publik');
    create table two.x (a int, w text); insert into two.x values (1, 'two');
    create table mine (a int); insert into mine values (7);
    create sequence seq;
    create function shout(what text) returns text language plpgsql as
      $$ begin raise notice 'hear: %', what; return upper(what); end $$;
    grant usage on schema two to public; grant select on x, two.x to public;
    grant all on t, later, seq, t_id_seq to public";

const CHANGED_TABLE: &str = "drop view if exists over; drop table if exists e; drop table if exists d;
    create table d (a int, b text); insert into d values (1, 'one'), (2, 'two'); grant all on d to public";

const REFILL: &str =
    "delete from t; delete from later; delete from d; insert into d values (1, 'one'), (2, 'two');
    insert into t (id, v) values (101, 'a'), (102, 'b'), (103, null);
    do $$ begin perform setval('t_id_seq', 1, false); perform setval('seq', 1, false); end $$";

pub struct Stage {
    front: Front,
    server: Postgres,
    profile: &'static Profile,
    superusers: [Connection; 2],
    spare: Vec<(usize, Client, Client)>,
    scripts: usize,
}

/// A tidegate, and who is always there.
struct Front {
    gate: Tidegate,
    blockers: Vec<Blocker>,
    /// Listens all the time, so that the pool's listening connection neither comes nor goes.
    _listener: Option<Connection>,
}

impl Front {
    fn new(server: &Postgres, profile: &Profile, wait_ms: usize) -> Self {
        let mut config = tempfile::NamedTempFile::new().expect("a temp file");
        config.write_all(b"[postgres]\nsequence_hold_ms = 0\n").expect("a temp file");
        let gate = Setup::new()
            .database_url(&server.url_with("app", "app-secret", POOLED))
            .env("TIDEGATE_POSTGRES_AUTH", "trust")
            .pool_size(profile.pool)
            .wait_ms(wait_ms)
            .config(config.path())
            .start();
        let port = gate.postgres_port();
        let listener = profile.listens.then(|| {
            let mut listener = Connection::open(port, &to(POOLED, 0));
            listener.query("listen \"all the time\"").expect_no_error();
            listener
        });
        let blockers = (0..profile.pool).map(|n| Blocker {
            connection: Connection::open(port, &blocker_login(n)),
            holds: None,
            own: None,
        });
        Self { blockers: blockers.collect(), gate, _listener: listener }
    }
}

/// What a blocker asks: where it is, and whether it has what it had before.
const OWN: &str = "select pg_catalog.pg_backend_pid(), current_user, session_user, \
    current_setting('transaction_isolation'), current_setting('transaction_read_only'), \
    current_setting('timezone'), current_setting('datestyle'), current_setting('search_path'), \
    current_setting('work_mem'), current_setting('application_name'), current_setting('bytea_output'), \
    current_setting('standard_conforming_strings'), current_setting('client_encoding'), \
    coalesce(current_setting('app.a', true), ''), coalesce(current_setting('app.b', true), ''), \
    coalesce(current_setting('app.c', true), ''), coalesce(current_setting('other.a', true), '')";

struct Blocker {
    connection: Connection,
    /// The server connection it holds, by its process.
    holds: Option<String>,
    /// Its settings, as it found them first.
    own: Option<Vec<Option<String>>>,
}

impl Stage {
    pub fn new(profile: &'static Profile) -> Self {
        let server = Postgres::start();
        let mut superusers = [DIRECT, POOLED].map(|database| superuser(&server, database));
        prepare(&mut superusers, profile);
        let front = Front::new(&server, profile, WAIT_MS);
        Self { front, server, profile, superusers, spare: Vec::new(), scripts: 0 }
    }

    /// Starts anew, behind a script that differed: another tidegate, and nobody else on the server.
    pub fn renewed(self) -> Self {
        let Self { front, server, profile, mut superusers, spare, scripts } = self;
        drop((front, spare));
        let others = "from pg_stat_activity where usename <> 'postgres'";
        let [superuser, _] = &mut superusers;
        superuser.query(&format!("select pg_terminate_backend(pid) {others}")).expect_no_error();
        eventually("everybody has gone", || {
            (superuser.one(&format!("select count(*) {others}")) == "0").then_some(())
        });
        let front = Front::new(&server, profile, WAIT_MS / 4);
        let mut stage = Self { front, server, profile, superusers, spare: Vec::new(), scripts };
        stage.renew_tables();
        stage
    }

    /// Connections of the pool that sessions and blockers may have.
    pub fn connections(&self) -> usize {
        self.profile.pool - usize::from(self.profile.listens)
    }

    /// A connection of each side, for a session with this login.
    pub fn pair(&mut self, login: usize) -> (Result<Client, String>, Result<Client, String>) {
        if let Some(at) = self.spare.iter().position(|(known, ..)| *known == login) {
            let (_, direct, pooled) = self.spare.swap_remove(at);
            return (Ok(direct), Ok(pooled));
        }
        let direct = open(self.server.port(), &to(DIRECT, login));
        let pooled = open(self.front.gate.postgres_port(), &to(POOLED, login));
        (direct, pooled)
    }

    /// Keeps a session's connections for another script, or closes them.
    pub fn keep(&mut self, login: usize, direct: Client, pooled: Client, chance: &mut Chance) {
        if chance.often(70) && self.spare.len() < 12 {
            let again = |client: Client| Client::new(client.into_connection());
            self.spare.push((login, again(direct), again(pooled)));
        }
    }

    /// How many connections of the pool blockers hold.
    pub fn blocked(&self) -> usize {
        self.front.blockers.iter().filter(|blocker| blocker.holds.is_some()).count()
    }

    /// Blockers take connections until they hold `wanted`.
    pub fn gather(&mut self, wanted: usize, disturb: bool) -> Result<(), String> {
        for _ in self.blocked()..wanted {
            let idle = self.front.blockers.iter_mut().find(|blocker| blocker.holds.is_none());
            let blocker = idle.ok_or("there is no blocker left")?;
            blocker.take(disturb)?;
        }
        Ok(())
    }

    /// Has a blocker give up its connection, one that is not `last` if there is a choice.
    pub fn release(&mut self, last: Option<&str>, choice: usize) -> Result<(), String> {
        let holding = self.front.blockers.iter_mut().filter(|blocker| blocker.holds.is_some());
        let (mut other, mut same): (Vec<_>, Vec<_>) =
            holding.partition(|blocker| blocker.holds.as_deref() != last);
        let pick = choice % other.len().max(1);
        let chosen = if other.is_empty() { same.pop() } else { Some(other.swap_remove(pick)) };
        if let Some(blocker) = chosen {
            blocker.connection.send(&query("commit"));
            blocker.reply()?;
            blocker.holds = None;
        }
        Ok(())
    }

    /// Waits until the server has ended this process.
    pub fn until_gone(&mut self, pid: i32) {
        let sql = format!("select count(*) from pg_stat_activity where pid = {pid}");
        let superuser = &mut self.superusers[0];
        eventually("a direct session ends", || (superuser.one(&sql) == "0").then_some(()));
    }

    pub fn notify_sentinel(&mut self) {
        for superuser in &mut self.superusers {
            superuser.query(&format!("notify {SENTINEL}, 'end'")).expect_no_error();
        }
    }

    /// Fills the tables as each script finds them.
    pub fn set_tables(&mut self) {
        self.scripts += 1;
        for superuser in &mut self.superusers {
            if self.scripts.is_multiple_of(SCRIPTS_PER_VACUUM) {
                superuser.query("vacuum").expect_no_error();
            }
            superuser.query(REFILL).expect_no_error();
        }
    }

    /// Makes the table anew whose columns scripts change.
    pub fn renew_tables(&mut self) {
        for superuser in &mut self.superusers {
            renew(superuser);
        }
    }

    /// What the pool has logged, and the server at last.
    pub fn log(&self) -> String {
        let lines: Vec<String> = self.server.log().lines().map(str::to_owned).collect();
        let last = &lines[lines.len().saturating_sub(60)..];
        let gate = &self.front.gate;
        let page = metrics::get(gate.admin_port(), "/metrics").expect("the admin port answers");
        let counts = page.body.lines().filter(|line| line.contains("postgres"));
        let counts: Vec<&str> = counts.filter(|line| !line.contains("bucket")).collect();
        format!("{}\n{}\n{}", gate.output(), counts.join("\n"), last.join("\n"))
    }

    pub fn assert_alive(&mut self) {
        self.front.gate.assert_alive();
    }
}

impl Blocker {
    fn take(&mut self, disturb: bool) -> Result<(), String> {
        let mut bytes = query(&format!("begin; {OWN}"));
        if disturb {
            for name in ["", "s1", "s2"] {
                bytes.extend(close_statement(name));
                bytes.extend(parse(name, "select 'a blocker'"));
                bytes.extend([bind("", name, &[]), execute("", 0)].concat());
            }
            bytes.extend(sync());
        }
        self.connection.send(&bytes);
        let reply = self.reply()?;
        let mut row = reply.rows().remove(0);
        self.holds = row.remove(0);
        let own = self.own.get_or_insert_with(|| row.clone());
        if *own != row {
            return Err(format!("a blocker finds {row:?}, not its own {own:?}"));
        }
        if disturb {
            let rows = self.reply()?.rows();
            assert!(
                rows.iter().flatten().all(|value| value.as_deref() == Some("a blocker")),
                "{rows:?}"
            );
        }
        Ok(())
    }
}

impl Blocker {
    /// A reply without errors.
    fn reply(&mut self) -> Result<Reply, String> {
        let mut frames: Vec<Frame> = Vec::new();
        while frames.last().is_none_or(|last| last.tag != b'Z') {
            let frame = self.connection.try_frame();
            frames.push(frame.map_err(|error| format!("a blocker's {error}, behind {frames:?}"))?);
        }
        let reply = Reply { frames };
        match reply.errors().first() {
            Some(refusal) => Err(format!("{refusal:?}")),
            None => Ok(reply),
        }
    }
}

fn superuser(server: &Postgres, database: &str) -> Connection {
    let login = Login { user: "postgres".into(), database: database.into(), ..Login::app() };
    let mut superuser = Connection::open(server.port(), &login);
    superuser.query("set lock_timeout = '10s'; set client_min_messages = error").expect_no_error();
    superuser
}

/// The databases, alike. Whoever would wait for a lock of another session gives up at once, on both sides.
fn prepare(superusers: &mut [Connection; 2], profile: &Profile) {
    let file = superusers[0].one("show hba_file");
    superusers[0]
        .query(&format!(
            "create role other nologin; grant other to app;
             copy (values ('local all all trust'), ('host all all 127.0.0.1/32 trust')) to '{file}'"
        ))
        .expect_no_error();
    superusers[0].query("select pg_reload_conf()").expect_no_error();
    if profile.superuser {
        superusers[0].query("alter role app superuser").expect_no_error();
    }
    for (superuser, database) in superusers.iter_mut().zip([DIRECT, POOLED]) {
        let timeout = format!("alter database {database} set lock_timeout = '15ms'");
        superuser.query(&timeout).expect_no_error();
        superuser.query("grant all on schema public to app, other").expect_no_error();
        superuser.query(&format!("set role app; {TABLES}; reset role")).expect_no_error();
        renew(superuser);
    }
}

fn renew(superuser: &mut Connection) {
    superuser.query(&format!("set role app; {CHANGED_TABLE}; reset role")).expect_no_error();
}

/// As login number `login`, to a database.
fn to(database: &str, login: usize) -> Login {
    let mut made = Login { database: database.into(), ..Login::app() };
    for (name, value) in LOGINS[login] {
        made = made.with(name, value);
    }
    made
}

/// Blockers are other people: their settings must not be seen by anybody.
fn blocker_login(n: usize) -> Login {
    let login = to(POOLED, 0);
    match n % 3 {
        0 => login,
        1 => {
            login.with("TimeZone", "America/Lima").with("options", "-c search_path=two -c app.a=no")
        }
        _ => login.with("DateStyle", "SQL, DMY").with("application_name", "a blocker"),
    }
}
