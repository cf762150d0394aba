//! The metrics page, read the way a scraper reads it.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::DEADLINE;

/// One answer of the admin port.
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// A GET with one short connection; `None` while nothing listens there.
pub fn get(port: u16, path: &str) -> Option<Answer> {
    get_with(port, path, "")
}

/// As [`get`], with further `headers`, each with its line's end.
pub fn get_with(port: u16, path: &str, headers: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    let fixed = "Host: localhost\r\nConnection: close\r\n";
    write!(stream, "GET {path} HTTP/1.1\r\n{fixed}{headers}\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let body = text.split_once("\r\n\r\n")?.1.to_owned();
    Some(Answer { status, body })
}

/// A scraped page.
pub struct Page(pub String);

impl Page {
    /// The sum of all samples of `name` that carry every one of `labels`. A sample that was never
    /// counted counts as nought.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        self.0
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .filter(|(series, _)| wanted.iter().all(|label| series.contains(label.as_str())))
            .map(|(_, value)| value.parse::<f64>().expect("a sample ends with a number"))
            .sum()
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.lines().any(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        })
    }
}
