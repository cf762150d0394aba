//! sqlx as applications use it: its pool with a test before each use, statements it keeps, transactions, COPY, its
//! listener.

use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use sqlx_core::connection::Connection;
use sqlx_core::error::Error;
use sqlx_core::query::query;
use sqlx_core::query_as::query_as;
use sqlx_core::query_scalar::query_scalar;
use sqlx_core::raw_sql::raw_sql;
use sqlx_postgres::{PgConnection, PgListener, PgPool, PgPoolCopyExt, PgPoolOptions};
use tokio::task::block_in_place;

use super::crowd::Crowd;

const CLIENTS: u32 = 6;
/// For what the server sends unasked.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn work(url: &str, crowd: &mut Crowd) -> Result<(), Error> {
    let options = PgPoolOptions::new().min_connections(CLIENTS).max_connections(CLIENTS);
    let pool = options.connect(url).await?;
    let mut one = PgConnection::connect(url).await?;
    statements(&mut one, crowd).await?;
    settings(&mut one, crowd).await?;
    transactions(&pool).await?;
    copies(&pool).await?;
    together(&pool).await?;
    given_up(&pool, crowd).await?;
    one.close().await?;
    notifications(&pool).await?;
    pool.close().await;
    Ok(())
}

fn code(error: &Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.map(|code| code.into_owned()).unwrap_or_else(|| panic!("not the server's: {error}"))
}

/// One statement on both server connections; sqlx prepares every one under a name of its own.
async fn statements(one: &mut PgConnection, crowd: &mut Crowd) -> Result<(), Error> {
    let mut seen = Vec::new();
    for n in 0..4 {
        let (twice, pid): (i32, i32) =
            query_as("select $1 * 2, pg_backend_pid()").bind(n).fetch_one(&mut *one).await?;
        assert_eq!(twice, n * 2);
        assert_ne!(seen.last(), Some(&pid));
        seen.push(pid);
        block_in_place(|| crowd.occupy(pid));
    }
    assert_eq!(seen[0], seen[2]);
    crowd.release();
    // More of them than it keeps: the oldest are closed.
    for n in 0..150 {
        let sql = sqlx_core::sql_str::AssertSqlSafe(format!("select {n} + $1"));
        let sum: i32 = query_scalar(sql).bind(1).fetch_one(&mut *one).await?;
        assert_eq!(sum, n + 1);
    }
    Ok(())
}

async fn settings(one: &mut PgConnection, crowd: &mut Crowd) -> Result<(), Error> {
    raw_sql("set work_mem = '5MB'; set statement_timeout = 12345").execute(&mut *one).await?;
    let shown = "select current_setting('work_mem'), current_setting('statement_timeout'), \
                 current_setting('timezone'), pg_backend_pid()";
    for _ in 0..2 {
        let (memory, timeout, zone, pid): (String, String, String, i32) =
            query_as(shown).fetch_one(&mut *one).await?;
        // The zone is what sqlx gives at startup.
        assert_eq!([memory, timeout, zone], ["5MB", "12345ms", "UTC"]);
        block_in_place(|| crowd.occupy(pid));
    }
    crowd.release();
    Ok(())
}

async fn transactions(pool: &PgPool) -> Result<(), Error> {
    query("create table kept (id int primary key, name text)").execute(pool).await?;
    let mut transaction = pool.begin().await?;
    for n in 0..100 {
        let insert = query("insert into kept values ($1, $2)").bind(n).bind(format!("name {n}"));
        insert.execute(&mut *transaction).await?;
    }
    let mut savepoint = transaction.begin().await?;
    let twice = query("insert into kept values (99, 'twice')").execute(&mut *savepoint).await;
    assert_eq!(code(&twice.unwrap_err()), "23505");
    savepoint.rollback().await?;
    transaction.commit().await?;
    // Dropped, it is rolled back before the connection is used again.
    let mut transaction = pool.begin().await?;
    query("delete from kept").execute(&mut *transaction).await?;
    drop(transaction);
    let mut transaction = pool.begin().await?;
    query("delete from kept").execute(&mut *transaction).await?;
    transaction.rollback().await?;
    let rows = query("select * from kept").fetch(pool);
    assert_eq!(rows.try_collect::<Vec<_>>().await?.len(), 100);
    let error = query("select 1/0").execute(pool).await.unwrap_err();
    assert_eq!(code(&error), "22012");
    Ok(())
}

async fn copies(pool: &PgPool) -> Result<(), Error> {
    query("create table copied (id int, name text)").execute(pool).await?;
    let lines: String = (0..5_000).map(|n| format!("{n}\tname {n}\n")).collect();
    let mut copy = pool.copy_in_raw("copy copied from stdin").await?;
    for piece in lines.as_bytes().chunks(10_000) {
        copy.send(piece).await?;
    }
    assert_eq!(copy.finish().await?, 5_000);
    let out = pool.copy_out_raw("copy copied to stdout").await?;
    let out: Vec<bytes::Bytes> = out.try_collect().await?;
    assert_eq!(out.concat(), lines.as_bytes());
    let mut copy = pool.copy_in_raw("copy copied from stdin").await?;
    copy.send(&b"7\tgiven up\n"[..]).await?;
    copy.abort("changed my mind").await?;
    let count: i64 = query_scalar("select count(*) from copied").fetch_one(pool).await?;
    assert_eq!(count, 5_000);
    Ok(())
}

/// More tasks than clients, more clients than server connections; no update is lost.
async fn together(pool: &PgPool) -> Result<(), Error> {
    let tasks = (0..CLIENTS * 3).map(|_| async {
        for _ in 0..5 {
            let mut transaction = pool.begin().await?;
            let sql = "select name from kept where id = 1 for update";
            let name: String = query_scalar(sql).fetch_one(&mut *transaction).await?;
            let next = query("update kept set name = $1 where id = 1").bind(name + "+");
            next.execute(&mut *transaction).await?;
            transaction.commit().await?;
        }
        Ok::<_, Error>(())
    });
    try_join_all(tasks).await?;
    let name: String = query_scalar("select name from kept where id = 1").fetch_one(pool).await?;
    assert_eq!(name.matches('+').count(), 90);
    Ok(())
}

/// sqlx has no cancel: what is dropped while it runs is read to its end before the connection is used again, and one
/// with a time limit of the session's own ends by the server's word.
async fn given_up(pool: &PgPool, crowd: &mut Crowd) -> Result<(), Error> {
    let mut one = pool.acquire().await?;
    let sleep = query("select pg_sleep(0.5)").execute(&mut *one);
    assert!(tokio::time::timeout(Duration::from_millis(100), sleep).await.is_err());
    let pid: i32 = query_scalar("select pg_backend_pid()").fetch_one(&mut *one).await?;
    query("set statement_timeout = 100").execute(&mut *one).await?;
    block_in_place(|| crowd.occupy(pid));
    let slept = query("select pg_sleep(20)").execute(&mut *one).await;
    assert_eq!(code(&slept.unwrap_err()), "57014");
    crowd.release();
    query("reset statement_timeout").execute(&mut *one).await?;
    Ok(())
}

/// They come while the client does nothing.
async fn notifications(pool: &PgPool) -> Result<(), Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen_all(["news", "Other news"]).await?;
    for (channel, payload) in [("news", "1"), ("Other news", "2"), ("news", "3")] {
        let notify = query("select pg_notify($1, $2)").bind(channel).bind(payload);
        notify.execute(pool).await?;
        let heard = tokio::time::timeout(PATIENCE, listener.recv()).await.expect("in time")?;
        assert_eq!((heard.channel(), heard.payload()), (channel, payload));
    }
    listener.unlisten_all().await
}
