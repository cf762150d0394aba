//! The admin port, asked over HTTP: one short connection a question, bounded in time and size.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::status::Status;

/// Longest time for the whole answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Most bytes of it: a hundred pools with their history have two million.
const MOST_BYTES: usize = 16 << 20;
/// HTTP's, where the URL names none.
const PLAIN_PORT: u16 = 80;

/// Where tidegate tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminPort {
    url: String,
    host: String,
    port: u16,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum NoStatus {
    /// What was given is no URL of an admin port.
    #[error("--admin {url}: {problem}; it looks like http://127.0.0.1:9127")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nobody is there.
    #[error(
        "{url} cannot be reached ({error}): is tidegate running? It listens where TIDEGATE_ADMIN_LISTEN says; --admin URL \
         names another place"
    )]
    Unreachable {
        /// Who was asked.
        url: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// Somebody is there and says nothing.
    #[error("{url} has not answered within {} s: is it tidegate's admin port, and does tidegate have CPU?", PATIENCE.as_secs())]
    Late {
        /// Who was asked.
        url: String,
    },
    /// Somebody else is there.
    #[error(
        "{url} is no admin port of this tidegate's version ({problem}): see TIDEGATE_ADMIN_LISTEN, or name it with --admin URL"
    )]
    Stranger {
        /// Who was asked.
        url: String,
        /// What makes one think so.
        problem: String,
    },
}

impl AdminPort {
    /// Where `url` leads; `http://` may be left out.
    ///
    /// # Errors
    /// It is not the URL of an admin port.
    pub fn at(url: &str) -> Result<Self, NoStatus> {
        let wrong = |problem| NoStatus::Url { url: url.to_owned(), problem };
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = whole.parse().map_err(|_| wrong("this is no URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("the admin port speaks plain HTTP"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("only the address is wanted"));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if host.is_empty() {
            return Err(wrong("there is no host in it"));
        }
        let url = whole.trim_end_matches('/').to_owned();
        Ok(Self { url, host, port: uri.port_u16().unwrap_or(PLAIN_PORT) })
    }

    /// As a person writes it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// As HTTP names it: an IPv6 address in brackets.
    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// How everything stands. Holds no character that could move a terminal's cursor.
    ///
    /// # Errors
    /// There is no answer, or none that can be read.
    pub async fn status(&self) -> Result<Status, NoStatus> {
        let late = |_| NoStatus::Late { url: self.url.clone() };
        tokio::time::timeout(PATIENCE, self.ask()).await.map_err(late)?
    }

    async fn ask(&self) -> Result<Status, NoStatus> {
        let connected = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream =
            connected.map_err(|error| NoStatus::Unreachable { url: self.url.clone(), error })?;
        let text = self.get(stream).await?;
        let value: Value = serde_json::from_slice(&text).map_err(|error| self.stranger(error))?;
        serde_json::from_value(printable(value)).map_err(|error| self.stranger(error))
    }

    async fn get(&self, stream: TcpStream) -> Result<Bytes, NoStatus> {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| self.stranger(error))?;
        // It ends with the answer, or with the stream when the sender is dropped.
        tokio::spawn(connection);
        let request = Request::get("/status.json")
            .header(HOST, self.authority())
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.stranger(error))?;
        let answer = sender.send_request(request).await.map_err(|error| self.stranger(error))?;
        if answer.status() != StatusCode::OK {
            return Err(self.stranger(format!("it answers with {}", answer.status())));
        }
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| {
            if error.is::<LengthLimitError>() {
                self.stranger("its answer is too long")
            } else {
                self.stranger(error)
            }
        })
    }

    fn stranger(&self, problem: impl ToString) -> NoStatus {
        NoStatus::Stranger { url: self.url.clone(), problem: problem.to_string() }
    }
}

/// The same with every character replaced that a terminal would obey instead of showing it: applications choose their names.
fn printable(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(text.chars().map(shown).collect()),
        Value::Array(items) => items.into_iter().map(printable).collect(),
        Value::Object(fields) => {
            let key = |name: String| name.chars().map(shown).collect::<String>();
            fields.into_iter().map(|(name, value)| (key(name), printable(value))).collect()
        }
        other => other,
    }
}

fn shown(c: char) -> char {
    let is_unseen = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    if c == '\n' || c == '\t' {
        ' '
    } else if c.is_control() || is_unseen {
        '\u{fffd}'
    } else {
        c
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn urls_are_read_as_people_write_them() {
        let port = |url| AdminPort::at(url).map(|port| (port.host, port.port));
        assert_eq!(port("http://127.0.0.1:9127").unwrap(), ("127.0.0.1".to_owned(), 9127));
        assert_eq!(port("localhost:9127/").unwrap(), ("localhost".to_owned(), 9127));
        assert_eq!(port("http://[::1]:9").unwrap(), ("::1".to_owned(), 9));
        assert_eq!(port("http://gate").unwrap(), ("gate".to_owned(), 80));
        for (wrong, word) in [
            ("https://127.0.0.1:9127", "plain HTTP"),
            ("http://127.0.0.1:9127/metrics", "only the address"),
            ("http://a b", "no URL"),
            ("", "no URL"),
        ] {
            let said = AdminPort::at(wrong).unwrap_err().to_string();
            assert!(said.contains(word), "{wrong}: {said}");
        }
    }

    /// A server that answers one request with `answer`, and then says nothing more.
    async fn said_of(answer: Vec<u8>) -> Result<Status, NoStatus> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = AdminPort::at(&listener.local_addr().unwrap().to_string()).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _request = stream.read(&mut [0; 4096]).await;
            let _gone = stream.write_all(&answer).await;
            std::future::pending::<()>().await;
        });
        port.status().await
    }

    fn answer(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn what_a_terminal_would_obey_is_not_let_in() {
        let mut status =
            Status { version: "1\u{1b}[2J\u{202e}\n\u{9b}x".to_owned(), ..Status::default() };
        let body = serde_json::to_string(&status).unwrap();
        status.version = "1\u{fffd}[2J\u{fffd} \u{fffd}x".to_owned();
        assert_eq!(said_of(answer(&body)).await.unwrap(), status);
    }

    #[tokio::test]
    async fn whatever_is_wrong_is_said() {
        let nobody = AdminPort::at("127.0.0.1:1").unwrap().status().await.unwrap_err().to_string();
        assert!(nobody.contains("is tidegate running?") && nobody.contains("--admin"), "{nobody}");
        let other = said_of(answer("<html>")).await.unwrap_err().to_string();
        assert!(other.contains("is no admin port"), "{other}");
        let missing =
            said_of(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
        assert!(missing.unwrap_err().to_string().contains("404"));
        let endless = b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n".to_vec();
        let endless = said_of([endless, vec![b' '; MOST_BYTES + 1]].concat()).await.unwrap_err();
        assert!(endless.to_string().contains("too long"), "{endless}");
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_wait_for_ever() {
        let late = said_of(b"HTTP/1.1 200 OK\r\n".to_vec()).await.unwrap_err().to_string();
        assert!(late.contains("not answered within 3 s"), "{late}");
    }
}
