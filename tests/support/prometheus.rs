//! A throwaway Prometheus, and its promtool.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use super::process::Process;
use super::{DEADLINE, eventually, ports};

/// What the repository ships for Prometheus and Grafana.
pub fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

/// Runs promtool with `input`, and expects success.
pub fn promtool(arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| {
        panic!("promtool: {error}; bin/setup installs what the tests need")
    });
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

pub struct Prometheus {
    port: u16,
    _directory: TempDir,
    server: Process,
}

/// One series of an answer.
#[derive(Debug, Clone)]
pub struct Series {
    pub labels: Value,
    pub value: f64,
}

impl Prometheus {
    /// Scrapes nobody, and takes what is written to it.
    pub fn receiving() -> Self {
        Self::start("")
    }

    /// Scrapes the admin port each second, and judges the shipped alerts.
    pub fn scraping(admin: u16) -> Self {
        let rules = shipped("prometheus/alerts.yml");
        Self::start(&format!(
            "rule_files: [\"{}\"]\n\
             scrape_configs: [{{job_name: tidegate, static_configs: [{{targets: [\"127.0.0.1:{admin}\"]}}]}}]\n",
            rules.display()
        ))
    }

    fn start(more: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("tidegate-prometheus-").tempdir();
        let directory = directory.expect("a temp dir");
        let config = directory.path().join("prometheus.yml");
        let global = "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n";
        fs::write(&config, format!("{global}{more}")).expect("our own directory");
        let port = ports::free();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        command.args(["--web.enable-remote-write-receiver", "--log.level=warn"]);
        let mut server = Process::start(command, Signal::KILL);
        eventually("Prometheus is ready", || {
            let gone = server.exited();
            assert!(gone.is_none(), "Prometheus ended: {gone:?}\n{}", server.output());
            get(port, "/-/ready")
        });
        Self { port, _directory: directory, server }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/api/v1/write", self.port)
    }

    /// What it answers now; panics where it can't understand the expression.
    pub fn query(&self, expression: &str) -> Vec<Series> {
        let coded = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let data = self.api(&format!("query?query={coded}"));
        let result = data["result"].as_array().unwrap_or_else(|| panic!("{expression}: {data}"));
        result
            .iter()
            .map(|series| Series {
                labels: series["metric"].clone(),
                value: number(&series["value"][1]),
            })
            .collect()
    }

    /// The sum of all series.
    pub fn sum(&self, expression: &str) -> f64 {
        self.query(expression).iter().map(|series| series.value).sum()
    }

    /// The data of an answer of its API.
    pub fn api(&self, path: &str) -> Value {
        let body = ask(self.port, &format!("/api/v1/{path}")).map(|(_, body)| body);
        let body = body.unwrap_or_else(|| panic!("no answer\n{}", self.server.output()));
        let answer: Value =
            serde_json::from_str(&body).unwrap_or_else(|_| panic!("{path}: {body}"));
        assert_eq!(answer["status"], "success", "{path}: {body}");
        answer["data"].clone()
    }
}

/// As Prometheus writes it: `NaN` and `+Inf` are among them.
fn number(value: &Value) -> f64 {
    let text = value.as_str().expect("a sample's value is a text");
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}

fn get(port: u16, path: &str) -> Option<String> {
    ask(port, path).filter(|(status, _)| *status == 200).map(|(_, body)| body)
}

/// In HTTP/1.0: the answer comes in one piece, and ends with the connection.
fn ask(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
}
