//! Reading the settings again while clients are here: on SIGHUP, at the console's word, and when a file has changed. Either all
//! of them are taken that a running process can take, or nothing changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::Receiver;

use super::files::Files;
use super::herald::Herald;
use super::listeners::refuse_loop;
use super::logging::LogSwitch;
use crate::config::{Loaded, needs_restart};
use crate::lifecycle::{Drain, ReloadAnswer};
use crate::metrics::{Metrics, Reload};
use crate::net::{Address, LoginFailures, Tls};
use crate::{postgres, redis};

/// Longest time to read the settings: a file may lie where reading hangs.
const READING: Duration = Duration::from_secs(10);

/// What can take other settings.
pub(super) struct Reloader {
    /// What the process was started with.
    pub(super) started: Loaded,
    pub(super) postgres: Option<Arc<postgres::service::Service>>,
    pub(super) redis: Option<Arc<redis::service::Service>>,
    /// What metrics are sent out over.
    pub(super) push: Option<Tls>,
    /// Where we listen: no URL may lead there.
    pub(super) addresses: Vec<Address>,
    pub(super) failures: Arc<LoginFailures>,
    pub(super) log: LogSwitch,
    pub(super) herald: Herald,
    pub(super) metrics: Arc<Metrics>,
}

/// Whether SIGHUP has the settings read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hangup {
    Reloads,
    /// We were started to ignore it, as under nohup.
    Ignored,
}

/// Why the settings are read.
enum Cause {
    Signal,
    Console(ReloadAnswer),
    File,
}

impl Cause {
    const fn word(&self) -> &'static str {
        match self {
            Self::Signal => "SIGHUP",
            Self::Console(_) => "console",
            Self::File => "file",
        }
    }
}

impl Reloader {
    /// Does so until the drain starts.
    pub(super) async fn keep(
        self,
        hangup: Hangup,
        mut asked: Receiver<ReloadAnswer>,
        drain: Drain,
    ) {
        let mut signals = hangups(hangup);
        let mut every = self.started.settings.reload_check;
        let mut files = Files::new(self.started.watched.clone()).await;
        loop {
            let cause = tokio::select! {
                () = drain.started() => return,
                () = next(signals.as_mut()) => Cause::Signal,
                Some(answer) = asked.recv() => Cause::Console(answer),
                () = files.changed(every) => Cause::File,
            };
            let word = cause.word();
            self.herald.reloading();
            files.take().await;
            let answer = match self.reload().await {
                Ok((loaded, words)) => {
                    every = loaded.settings.reload_check;
                    files.follow(loaded.watched).await;
                    tracing::info!(cause = word, "the settings were read again");
                    words.iter().for_each(|warning| tracing::warn!("{warning}"));
                    Ok(words)
                }
                Err(problem) => {
                    tracing::error!(
                        cause = word,
                        problem,
                        "the settings were not taken: nothing has changed"
                    );
                    Err(problem)
                }
            };
            // Taken or not: we go on.
            self.herald.ready();
            self.metrics.reloaded(if answer.is_ok() { Reload::Taken } else { Reload::Refused });
            if let Cause::Console(asker) = cause {
                // It may have gone meanwhile.
                let _heard = asker.send(answer);
            }
        }
    }

    async fn reload(&self) -> Result<(Loaded, Vec<String>), String> {
        let started = self.started.clone();
        let reading = tokio::task::spawn_blocking(move || started.read_again());
        let read = tokio::time::timeout(READING, reading).await;
        let late = || format!("the settings could not be read within {} s", READING.as_secs());
        let read = read.map_err(|_| late())?.map_err(|error| error.to_string())?;
        let loaded = read.map_err(|error| error.to_string())?;
        let mut words = self.take(&loaded).map_err(|error| format!("{error:#}"))?;
        words.extend(self.read_certificates().await);
        Ok((loaded, words))
    }

    /// Certificates, keys and roots, which may have changed where no setting has: what is wrong with them, if anything is.
    async fn read_certificates(&self) -> Vec<String> {
        let (postgres, redis, push) =
            (self.postgres.clone(), self.redis.clone(), self.push.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let postgres = postgres.map(|service| service.reload_tls());
            let redis = redis.map(|service| service.reload_tls());
            let push = push.map(|tls| tls.reload());
            let failed = [postgres, redis, push].into_iter().flatten().filter_map(Result::err);
            failed.map(|error| format!("{error}; what was read before stays")).collect()
        });
        match tokio::time::timeout(READING, reading).await {
            Ok(Ok(words)) => words,
            _ => vec!["files about TLS could not be read; what was read before stays".to_owned()],
        }
    }

    /// Takes settings; what deserves a word in the log.
    fn take(&self, loaded: &Loaded) -> anyhow::Result<Vec<String>> {
        for (variable, address) in loaded
            .variables
            .iter()
            .flat_map(|variable| self.addresses.iter().map(move |address| (variable, address)))
        {
            refuse_loop(variable, address)?;
        }
        let settings = &loaded.settings;
        let postgres = self.postgres.as_ref().zip(settings.postgres.as_ref());
        let postgres = postgres.map(|(service, wanted)| Ok((service, service.prepare(wanted)?)));
        let postgres = postgres.transpose().map_err(|error: anyhow::Error| error)?;
        let redis = self.redis.as_ref().zip(settings.redis.as_ref());
        let redis = redis.map(|(service, wanted)| Ok((service, service.prepare(wanted)?)));
        let redis = redis.transpose().map_err(|error: anyhow::Error| error)?;
        // From here on nothing fails.
        let mut words = loaded.warnings.clone();
        let restart = needs_restart(&self.started, loaded);
        words.extend(restart.iter().map(|name| format!("{name} has changed and needs a restart")));
        if let Some((service, change)) = postgres {
            words.extend(service.apply(change));
        }
        if let Some((service, change)) = redis {
            words.extend(service.apply(change));
        }
        self.failures.set_limit(settings.login_failures_per_minute);
        self.log.set(settings.log.level);
        Ok(words)
    }
}

/// Hears SIGHUP beside whoever passes it on.
fn hangups(hangup: Hangup) -> Option<Signal> {
    if hangup == Hangup::Ignored {
        return None;
    }
    let heard = signal(SignalKind::hangup());
    heard.inspect_err(|error| tracing::warn!(%error, "SIGHUP is not heard")).ok()
}

async fn next(signals: Option<&mut Signal>) {
    if let Some(signals) = signals
        && signals.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}
