//! tokio-postgres as applications use it: prepared statements, pipelines, portals, COPY, types it has to ask for,
//! notifications, cancel.

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, Error, NoTls, Notification, SimpleQueryMessage};

use super::crowd::Crowd;

/// For what the server sends unasked.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn work(url: &str, crowd: &mut Crowd) -> Result<(), Error> {
    let (mut client, mut heard) = connect(url).await?;
    statements(&client, crowd).await?;
    settings(&client, crowd).await?;
    transactions(&mut client).await?;
    copies(&client).await?;
    asked_types(&client, crowd).await?;
    cancel(&client, crowd).await?;
    notifications(&client, &mut heard, url).await
}

async fn connect(url: &str) -> Result<(Client, mpsc::UnboundedReceiver<Notification>), Error> {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await?;
    let (notified, heard) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notification(notification) = message.expect("the connection holds")
            {
                let _gone = notified.send(notification);
            }
        }
    });
    Ok((client, heard))
}

async fn pid(client: &Client) -> Result<i32, Error> {
    client.query_one("select pg_backend_pid()", &[]).await?.try_get(0)
}

/// One statement on both server connections, alone and many at once.
async fn statements(client: &Client, crowd: &mut Crowd) -> Result<(), Error> {
    let twice = client.prepare("select $1::int4 * 2, pg_backend_pid()").await?;
    let first: i32 = client.query_one(&twice, &[&21]).await?.try_get(1)?;
    block_in_place(|| crowd.occupy(first));
    let row = client.query_one(&twice, &[&21]).await?;
    assert_eq!(row.try_get::<_, i32>(0)?, 42);
    let second = row.try_get(1)?;
    assert_ne!(first, second);
    block_in_place(|| crowd.occupy(second));
    // They leave in one piece: tokio-postgres pipelines what is asked at once.
    let asked = (0..50).map(|n| {
        let twice = &twice;
        async move { client.query_one(twice, &[&n]).await?.try_get::<_, i32>(0) }
    });
    let doubled: Vec<i32> = (0..50).map(|n| n * 2).collect();
    assert_eq!(try_join_all(asked).await?, doubled);
    assert_eq!(client.query_one(&twice, &[&0]).await?.try_get::<_, i32>(1)?, first);
    // One that fails amid others fails alone.
    let mixed = (-2..3).map(|n: i32| async move {
        let asked = client.query_one_scalar::<i32, _>("select 6 / $1", &[&n]).await;
        asked.map_err(|error| error.code().cloned())
    });
    let mixed = futures_util::future::join_all(mixed).await;
    assert_eq!(mixed, [Ok(-3), Ok(-6), Err(Some(SqlState::DIVISION_BY_ZERO)), Ok(6), Ok(3)]);
    crowd.release();
    Ok(())
}

async fn settings(client: &Client, crowd: &mut Crowd) -> Result<(), Error> {
    client.batch_execute("set work_mem = '5MB'; set timezone = 'Asia/Tokyo'").await?;
    let first = pid(client).await?;
    block_in_place(|| crowd.occupy(first));
    let words = client.simple_query("show work_mem; show timezone").await?;
    let shown = words.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    assert_eq!(shown.collect::<Vec<_>>(), ["5MB", "Asia/Tokyo"]);
    assert_ne!(pid(client).await?, first);
    crowd.release();
    client.batch_execute("reset work_mem; reset timezone").await
}

async fn transactions(client: &mut Client) -> Result<(), Error> {
    client.batch_execute("create table kept (id int primary key, name text)").await?;
    let transaction = client.transaction().await?;
    for n in 0..100 {
        let name = format!("name {n}");
        transaction.execute("insert into kept values ($1, $2)", &[&n, &name]).await?;
    }
    transaction.commit().await?;
    let mut transaction = client.transaction().await?;
    transaction.execute("delete from kept where id < 50", &[]).await?;
    let savepoint = transaction.transaction().await?;
    let twice = savepoint.execute("insert into kept values (99, 'twice')", &[]).await;
    assert_eq!(twice.unwrap_err().code(), Some(&SqlState::UNIQUE_VIOLATION));
    savepoint.rollback().await?;
    // A portal, read in parts.
    let portal = transaction.bind("select id from kept order by id", &[]).await?;
    let mut parts = Vec::new();
    loop {
        let part = transaction.query_portal(&portal, 20).await?;
        if part.is_empty() {
            break;
        }
        parts.push(part.len());
    }
    assert_eq!(parts, [20, 20, 10]);
    transaction.rollback().await?;
    // Dropped, it is rolled back behind what is asked next.
    let transaction = client.transaction().await?;
    transaction.execute("delete from kept", &[]).await?;
    drop(transaction);
    let count: i64 = client.query_one_scalar("select count(*) from kept", &[]).await?;
    assert_eq!(count, 100);
    let error = client.query("select 1/0", &[]).await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));
    Ok(())
}

async fn copies(client: &Client) -> Result<(), Error> {
    client.batch_execute("create table copied (id int, name text)").await?;
    let lines: String = (0..5_000).map(|n| format!("{n}\tname {n}\n")).collect();
    let mut sink = pin!(client.copy_in("copy copied from stdin").await?);
    for piece in lines.as_bytes().chunks(10_000) {
        sink.send(bytes::Bytes::copy_from_slice(piece)).await?;
    }
    assert_eq!(sink.finish().await?, 5_000);
    let stream = client.copy_out("copy copied to stdout").await?;
    let out: Vec<bytes::Bytes> = stream.try_collect().await?;
    assert_eq!(out.concat(), lines.as_bytes());
    let mut sink = pin!(client.copy_in("copy copied from stdin").await?);
    sink.send(bytes::Bytes::from_static(b"not a number\tx\n")).await?;
    let refused = sink.finish().await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::INVALID_TEXT_REPRESENTATION));
    // One that is dropped is given up: nothing of it stays.
    let mut sink = Box::pin(client.copy_in("copy copied from stdin").await?);
    sink.send(bytes::Bytes::from_static(b"7\tgiven up\n")).await?;
    drop(sink);
    let count: i64 = client.query_one_scalar("select count(*) from copied", &[]).await?;
    assert_eq!(count, 5_000);
    Ok(())
}

/// For a type it does not know it asks the catalogue, by statements of its own that it keeps.
async fn asked_types(client: &Client, crowd: &mut Crowd) -> Result<(), Error> {
    client
        .batch_execute(
            "create type mood as enum ('well', 'ill'); create type pair as (a int, b mood); \
             create domain small as int check (value < 10)",
        )
        .await?;
    let first = pid(client).await?;
    block_in_place(|| crowd.occupy(first));
    let sql = "select row(1, 'ill')::pair, array['well']::mood[], 5::small, $1::mood";
    let statement = client.prepare(sql).await?;
    let names = statement.columns().iter().map(|column| column.type_().name().to_owned());
    assert_eq!(names.collect::<Vec<_>>(), ["pair", "_mood", "int4", "mood"]);
    crowd.release();
    Ok(())
}

async fn cancel(client: &Client, crowd: &mut Crowd) -> Result<(), Error> {
    let token = client.cancel_token();
    let sleeping = client.query("select pg_sleep(20)", &[]);
    let cancelling = async {
        crowd.wait_until_running("pg_sleep(20)").await;
        token.cancel_query(NoTls).await
    };
    let (slept, cancelled) = tokio::join!(sleeping, cancelling);
    cancelled?;
    assert_eq!(slept.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    let word: String = client.query_one_scalar("select 'after the cancel'", &[]).await?;
    assert_eq!(word, "after the cancel");
    Ok(())
}

/// They come while the client does nothing.
async fn notifications(
    client: &Client,
    heard: &mut mpsc::UnboundedReceiver<Notification>,
    url: &str,
) -> Result<(), Error> {
    client.batch_execute("listen news").await?;
    let (speaker, _) = connect(url).await?;
    for n in 0..3 {
        speaker.query("select pg_notify('news', $1)", &[&n.to_string()]).await?;
        let notification = tokio::time::timeout(PATIENCE, heard.recv()).await;
        let notification = notification.expect("in time").expect("the connection holds");
        assert_eq!(notification.channel(), "news");
        assert_eq!(notification.payload(), n.to_string());
    }
    client.batch_execute("unlisten news; notify news").await?;
    let word: String = client.query_one_scalar("select 'heard'", &[]).await?;
    assert_eq!(word, "heard");
    assert!(heard.try_recv().is_err());
    let stream = pin!(client.query_raw("select generate_series(1, 1000)", &[] as &[i32]).await?);
    assert_eq!(stream.count().await, 1000);
    Ok(())
}
