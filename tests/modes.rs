//! What `pool_mode` changes, and connections that are one client's for good: replication.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use support::eventually;
use support::pg::{Connection, Login, query};
use support::postgres::Postgres;
use support::tidegate::Setup;

const MODE: &str = "TIDEGATE_POSTGRES_POOL_MODE";

#[test]
fn session_mode_keeps_the_connection_until_the_client_leaves() {
    let server = Postgres::start();
    let setup = Setup::new().postgres(&server).pool_size(1).wait_ms(1_000);
    let gate = setup.env(MODE, "session").start();
    let mut first = gate.client();
    let pid = first.backend();
    first.query("set work_mem = '9MB'").expect_no_error();
    first.query("create temp table mine (n int)").expect_no_error();
    assert_eq!(first.backend(), pid);
    let mut second = gate.client();
    let refused = second.query("select 1");
    assert_eq!((refused.codes(), refused.status()), (vec!["53300".to_owned()], 'I'));
    assert_eq!(first.one("select count(*) from mine"), "0", "it keeps its own meanwhile");
    drop(first);
    // The connection is the same one, and clean.
    eventually("the second is served", || {
        second.query("select 1").errors().is_empty().then_some(())
    });
    assert_eq!(second.backend(), pid);
    assert_eq!(second.one("show work_mem"), "4MB");
    assert_eq!(second.one("select count(*) from pg_class where relname = 'mine'"), "0");
}

#[test]
fn statement_mode_refuses_transaction_blocks_and_nothing_else() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(1).env(MODE, "statement").start();
    let mut other = gate.client();
    let mut client = gate.client();
    assert_eq!(client.one("select 1"), "1");
    assert_eq!(client.query("select 1; select 2").rows().len(), 2);
    client.send(&query("begin"));
    let words = client.last_words();
    let refusal = words.iter().find(|frame| frame.tag == b'E').expect("words").refusal();
    assert_eq!((refusal.severity.as_str(), refusal.code.as_str()), ("FATAL", "0A000"));
    assert!(refusal.hint.contains("pool_mode"), "{refusal:?}");
    // Rolled back and given back.
    assert_eq!(other.one("select 2"), "2");
    assert_eq!(other.query("select now() = statement_timestamp()").status(), 'I');
}

#[test]
fn a_mode_may_be_for_one_user_of_one_database() {
    let server = Postgres::start();
    for (modes, kept) in [
        ("app@app=session", true),
        ("*@app=session transaction", true),
        ("app@other=session", false),
        ("app@app=transaction *@*=session", false),
    ] {
        let setup = Setup::new().postgres(&server).pool_size(1).wait_ms(2_000);
        let gate = setup.env(MODE, modes).start();
        let mut first = gate.client();
        first.backend();
        let reply = gate.client().query("select 1");
        assert_eq!(!reply.errors().is_empty(), kept, "{modes}: {reply:?}");
    }
}

fn replicating() -> Login {
    let login = Login { user: "postgres".into(), password: String::new(), ..Login::app() };
    login.with("replication", "database").with("application_name", "standby")
}

#[test]
fn a_replication_connection_has_a_server_connection_of_its_own() {
    let server = Postgres::start();
    let setup = Setup::new().database_url(&server.url_with("postgres", "", "app"));
    let gate = setup.pool_size(2).wait_ms(1_000).start();
    let mut standby = Connection::open(gate.postgres_port(), &replicating());
    assert!(standby.parameters.iter().any(|(name, _)| name == "server_version"));
    let system = standby.query("IDENTIFY_SYSTEM");
    assert_eq!(system.expect_no_error().rows()[0][3].as_deref(), Some("app"));
    assert_eq!(standby.one("SHOW application_name"), "standby");
    let pinned = || gate.postgres_metric("tidegate_server_connections", &[("state", "pinned")]);
    assert_eq!(pinned(), 1.0);

    // Not the last connection: a second one is refused, and plain sessions go on.
    let login = Login { user: "postgres".into(), password: String::new(), ..Login::app() };
    let refusal = Connection::try_open(gate.postgres_port(), &replicating()).err().unwrap();
    assert_eq!(refusal.code, "53300", "{refusal:?}");
    let mut plain = Connection::open(gate.postgres_port(), &login);
    assert_ne!(plain.backend(), standby.backend());

    // A cancel request reaches it.
    standby.send(&query("select pg_sleep(60)"));
    let sleeping = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' \
                    and pid <> pg_backend_pid()";
    eventually("it sleeps", || (plain.one(sleeping) == "1").then_some(()));
    standby.cancel();
    assert_eq!(standby.reply().codes(), ["57014"]);

    drop(standby);
    eventually("its connection is closed", || (pinned() == 0.0).then_some(()));
    Connection::open(gate.postgres_port(), &replicating())
        .query("IDENTIFY_SYSTEM")
        .expect_no_error();
}

#[test]
fn who_may_not_replicate_hears_it_from_the_server() {
    let server = Postgres::start();
    let gate = Setup::new().postgres(&server).pool_size(2).start();
    let login = Login::app().with("replication", "database");
    let refusal = Connection::try_open(gate.postgres_port(), &login).err().unwrap();
    assert_eq!((refusal.severity.as_str(), refusal.code.as_str()), ("FATAL", "42501"));
    assert_eq!(gate.client().one("select 1"), "1", "others are not kept from the server");
}
