//! The crate redis as applications use it: one connection for many tasks, pipelines, transactions, pub/sub, RESP3.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use redis::{
    AsyncCommands, AsyncConnectionConfig, Client, PushKind, RedisError, RedisResult, Value,
};

/// For what the server sends unasked.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) async fn work(url: &str) -> RedisResult<()> {
    for protocol in ["resp2", "resp3"] {
        let client = Client::open(format!("{url}?protocol={protocol}"))?;
        let key = |name: &str| format!("{protocol}:{name}");
        commands(&client, &key("n")).await?;
        transactions(&client, &key("t")).await?;
        blocking(&client, &key("queue")).await?;
    }
    messages(&Client::open(url)?).await?;
    pushes(&Client::open(format!("{url}?protocol=resp3"))?).await
}

async fn commands(client: &Client, key: &str) -> RedisResult<()> {
    let connection = client.get_multiplexed_async_connection().await?;
    let tasks = (0..50).map(|n| {
        let mut connection = connection.clone();
        async move {
            let () = connection.set(format!("{key}:{n}"), n).await?;
            let got: i32 = connection.get(format!("{key}:{n}")).await?;
            assert_eq!(got, n);
            connection.incr(key, 1).await
        }
    });
    let mut counts: Vec<i32> = try_join_all(tasks).await?;
    counts.sort_unstable();
    assert_eq!(counts, (1..=50).collect::<Vec<_>>());
    let mut connection = connection;
    let wrong: RedisResult<i32> = connection.lpush(key, 1).await;
    assert_eq!(wrong.unwrap_err().code(), Some("WRONGTYPE"));
    let (pong, kept): (String, i32) =
        redis::pipe().ping().get(key).query_async(&mut connection).await?;
    assert_eq!((pong.as_str(), kept), ("PONG", 50));
    let map: Vec<(String, i32)> = {
        let () = connection.hset_multiple(format!("{key}:h"), &[("a", 1), ("b", 2)]).await?;
        connection.hgetall(format!("{key}:h")).await?
    };
    assert_eq!(map, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    Ok(())
}

/// MULTI and EXEC in one piece, on a connection that other tasks use meanwhile; one that is refused does nothing.
async fn transactions(client: &Client, key: &str) -> RedisResult<()> {
    let connection = client.get_multiplexed_async_connection().await?;
    let tasks = (0..20).map(|_| {
        let mut connection = connection.clone();
        async move {
            let mut block = redis::pipe();
            block.atomic().incr(key, 1).incr(key, 1);
            let (first, second): (i32, i32) = block.query_async(&mut connection).await?;
            assert_eq!(second, first + 1);
            Ok::<_, RedisError>(())
        }
    });
    try_join_all(tasks).await?;
    let mut connection = connection;
    let mut block = redis::pipe();
    block.atomic().set(key, 7).cmd("NOSUCHCOMMAND");
    let refused: RedisResult<Value> = block.query_async(&mut connection).await;
    assert_eq!(refused.unwrap_err().code(), Some("EXECABORT"));
    assert_eq!(connection.get::<_, i32>(key).await?, 40);
    Ok(())
}

/// A connection of its own, without the limit on the wait for a reply.
async fn blocking(client: &Client, key: &str) -> RedisResult<()> {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let mut worker = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let popping = tokio::spawn({
        let key = key.to_owned();
        async move { worker.blpop::<_, (String, String)>(key, 15.0).await }
    });
    let _length: i32 = connection.rpush(key, "job").await?;
    let popped = tokio::time::timeout(PATIENCE, popping).await.expect("in time").expect("no panic");
    assert_eq!(popped?, (key.to_owned(), "job".to_owned()));
    Ok(())
}

async fn messages(client: &Client) -> RedisResult<()> {
    let mut speaker = client.get_multiplexed_async_connection().await?;
    let mut listener = client.get_async_pubsub().await?;
    listener.subscribe("news").await?;
    listener.psubscribe("other*").await?;
    for (channel, word) in [("news", "1"), ("other news", "2"), ("news", "3")] {
        let heard_by: i32 = speaker.publish(channel, word).await?;
        assert_eq!(heard_by, 1);
        let message = tokio::time::timeout(PATIENCE, listener.on_message().next()).await;
        let message = message.expect("in time").expect("the connection holds");
        assert_eq!(message.get_channel_name(), channel);
        assert_eq!(message.get_payload::<String>()?, word);
    }
    listener.unsubscribe("news").await?;
    assert_eq!(speaker.publish::<_, _, i32>("news", "4").await?, 0);
    Ok(())
}

/// In RESP3 one connection may subscribe and go on with commands.
async fn pushes(client: &Client) -> RedisResult<()> {
    let (pushed, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let config = AsyncConnectionConfig::new().set_push_sender(pushed);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut speaker = client.get_multiplexed_async_connection().await?;
    connection.subscribe("pushes").await?;
    let () = connection.set("pushes:k", 1).await?;
    assert_eq!(speaker.publish::<_, _, i32>("pushes", "hello").await?, 1);
    loop {
        let push = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time");
        let push = push.expect("the connection holds");
        if push.kind == PushKind::Message {
            let words = ["pushes", "hello"].map(|word| Value::BulkString(word.into()));
            assert_eq!(push.data, words);
            break;
        }
    }
    connection.unsubscribe("pushes").await?;
    assert_eq!(connection.get::<_, i32>("pushes:k").await?, 1);
    Ok(())
}
