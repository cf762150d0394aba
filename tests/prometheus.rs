//! What is shipped for Prometheus and Grafana, held against a real Prometheus that scrapes a real run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::NamedTempFile;

use support::pg::Login;
use support::postgres::Postgres;
use support::prometheus::{Prometheus, promtool, shipped};
use support::redis::Redis;
use support::resp;
use support::tidegate::{Setup, Tidegate};
use support::{ports, within};

/// Longest time for every panel to show something: the prediction needs half a minute.
const PATIENCE: Duration = Duration::from_secs(75);

const SETTINGS: &str = r#"
[postgres]
leak_ms = 300
query_timeout_ms = 1500
[redis]
namespace_census_ms = 1000
[[redis.namespaces]]
name = "cache"
password = "cache-secret"
"#;

/// Two connections to Postgres, of which one is forgotten by its client, so that the rest is never enough; four to Redis.
struct Stage {
    postgres: Postgres,
    _redis: Redis,
    gate: Tidegate,
}

impl Stage {
    fn new() -> Self {
        let (postgres, redis) = (Postgres::start(), Redis::start());
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), SETTINGS).unwrap();
        let away = format!("postgres://away:secret@127.0.0.1:{}/away", ports::free());
        let gate = Setup::new()
            .postgres(&postgres)
            .redis(&redis)
            .config(file.path())
            .env("AWAY_URL", &away)
            .env("TIDEGATE_POSTGRES_URLS", "DATABASE_URL AWAY_URL")
            .env("TIDEGATE_POSTGRES_POOL_SIZE", "2")
            .env("TIDEGATE_POSTGRES_WAIT_MS", "500")
            .start();
        Self { postgres, _redis: redis, gate }
    }

    /// Runs `work` while clients of every kind come and go.
    fn under_load<T>(&self, work: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        let until = |round: &dyn Fn()| {
            while !stop.load(Ordering::Relaxed) {
                round();
            }
        };
        let mut forgetful = self.gate.client();
        forgetful.query("begin").expect_no_error();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| until(&|| self.transactions()));
            }
            scope.spawn(|| until(&|| self.slow_and_pinned()));
            scope.spawn(|| until(&|| self.refused()));
            scope.spawn(|| until(&|| self.redis()));
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            stop.store(true, Ordering::Relaxed);
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Some wait in vain, at login as well, as they should.
    fn transactions(&self) {
        let Ok(mut client) = self.gate.try_client(&Login::app()) else { return };
        for sql in ["begin", "select pg_sleep(0.01)", "commit", "select 1"] {
            client.query(sql);
        }
    }

    /// Too slow once, pinned once, and its server connection is ended.
    fn slow_and_pinned(&self) {
        let Ok(mut client) = self.gate.try_client(&Login::app()) else { return };
        client.query("select pg_sleep(5)");
        client.query("create temporary table t (a int)");
        client.query("drop table if exists t");
        let idle = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app' and state = 'idle'";
        self.postgres.superuser().query(idle).expect_no_error();
    }

    fn refused(&self) {
        let wrong = Login { password: "wrong".into(), ..Login::app() };
        assert!(self.gate.try_client(&wrong).is_err());
        let away = Login {
            user: "away".into(),
            password: "secret".into(),
            database: "away".into(),
            ..wrong
        };
        let _refused = self.gate.try_client(&away).map(|mut client| client.query("select 1"));
        let mut outsider = self.gate.redis_client();
        outsider.command(&["AUTH", "cache", "cache-secret"]);
        outsider.command(&["SET", "cache:a", "1"]);
        assert!(outsider.command(&["GET", "other"]).text().starts_with("NOPERM"));
    }

    fn redis(&self) {
        let mut clients: [resp::Connection; 3] = std::array::from_fn(|_| self.gate.redis_client());
        let [listener, worker, writer] = &mut clients;
        listener.command(&["SUBSCRIBE", "news"]);
        worker.send(&resp::encode(&["BLPOP", "jobs", "5"]));
        for _ in 0..50 {
            writer.command(&["PUBLISH", "news", "hello"]);
            listener.reply();
            std::thread::sleep(Duration::from_millis(20));
        }
        writer.pipeline(&[&["MULTI"], &["RPUSH", "jobs", "one"], &["EXEC"]]);
        worker.reply();
    }
}

#[test]
fn the_alerts_are_sound_and_fire_when_they_should() {
    let alerts = |name: &str| shipped(name).display().to_string();
    promtool(&["check", "rules", &alerts("prometheus/alerts.yml")], "");
    promtool(&["test", "rules", &alerts("prometheus/alerts_test.yml")], "");
}

#[test]
fn every_panel_shows_something_and_every_alert_can_be_judged() {
    let stage = Stage::new();
    let prometheus = Prometheus::scraping(stage.gate.admin_port());
    let dashboard = dashboard();
    stage.under_load(|| {
        let mut empty: BTreeSet<String> = queries(&dashboard).into_iter().collect();
        assert!(empty.len() > 40, "these are all: {empty:?}");
        within_telling(PATIENCE, &mut empty, |query| shows_something(&prometheus, query));
        // Both have a time to wait before they fire.
        for alert in ["TidegatePoolSaturated", "TidegateLeak"] {
            let expression = format!("ALERTS{{alertname=\"{alert}\"}}");
            within(PATIENCE, alert, || (!prometheus.query(&expression).is_empty()).then_some(()));
        }
        // There is no time to wait for this one.
        let at_once = "ALERTS{alertname=\"TidegateClientsRejected\",alertstate=\"firing\"}";
        within(PATIENCE, at_once, || (!prometheus.query(at_once).is_empty()).then_some(()));
        no_rule_failed(&prometheus);
        let page = stage.gate.page().0;
        promtool(&["check", "metrics"], &page);
        documented(&page);
    });
}

/// Tries each until it holds, and says at the deadline which don't.
fn within_telling(limit: Duration, left: &mut BTreeSet<String>, holds: impl Fn(&str) -> bool) {
    let started = std::time::Instant::now();
    while !left.is_empty() {
        left.retain(|one| !holds(one));
        assert!(started.elapsed() < limit, "nothing to see of {left:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn shows_something(prometheus: &Prometheus, query: &str) -> bool {
    let series = prometheus.query(query);
    // A quantile of nothing is not a number.
    series.iter().any(|one| !one.value.is_nan())
        || query.contains("tidegate_plan_connections")
            && prometheus.query("tidegate_plan_connections").is_empty()
}

fn no_rule_failed(prometheus: &Prometheus) {
    let rules = prometheus.api("rules");
    let rules = rules["groups"][0]["rules"].as_array().expect("the rules").clone();
    assert!(rules.len() > 10, "{rules:?}");
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule:#}");
        for annotation in ["summary", "description"] {
            assert!(rule["annotations"][annotation].is_string(), "{rule:#}");
        }
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("warning" | "page")), "{rule:#}");
    }
}

fn dashboard() -> Value {
    let text = fs::read_to_string(shipped("grafana/dashboard.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().unwrap();
    all.iter().filter(|panel| panel["type"] != "row").collect()
}

/// What the panels and the variables ask, with each variable standing for all.
fn queries(dashboard: &Value) -> Vec<String> {
    let targets =
        panels(dashboard).into_iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let panels = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter_map(|variable| variable["query"]["query"].as_str());
    let variables = variables.map(|query| {
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = inside.unwrap().rsplit_once(',').unwrap();
        format!("count by ({label}) ({series})")
    });
    let all = panels.chain(variables);
    all.map(|query| {
        let mut query = query.replace("$__rate_interval", "20s");
        for variable in ["$instance", "$protocol", "$pool"] {
            query = query.replace(variable, ".*");
        }
        assert!(!query.contains('$'), "another variable in {query}");
        query
    })
    .collect()
}

#[test]
fn the_dashboard_is_one_that_grafana_takes() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 38, "Grafana 10");
    assert!(!dashboard["uid"].as_str().unwrap().is_empty());
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables: Vec<_> = variables.map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "instance", "protocol", "pool"]);
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel:#}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for (x, y) in (0..at("w")).flat_map(|x| (0..at("h")).map(move |y| (x, y))) {
            assert!(taken.insert((at("x") + x, at("y") + y)), "it lies on another: {panel:#}");
        }
    }
    for panel in panels(&dashboard) {
        assert!(panel["description"].as_str().unwrap().len() > 20, "{panel:#}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel:#}");
        }
    }
}

/// `docs/metrics.md` has a row for each metric of the page, with its kind.
fn documented(page: &str) {
    let text = fs::read_to_string(shipped("../docs/metrics.md")).unwrap();
    let rows: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .filter_map(|(name, rest)| Some((name.split('{').next()?, rest.split('|').nth(1)?.trim())))
        .collect();
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert_eq!(rows.get(name), Some(&kind), "the row of {name} in docs/metrics.md");
    }
}
