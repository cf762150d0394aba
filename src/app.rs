//! Composition root: builds everything once and hands it down; the life of the process from the
//! first listener to the last session.

mod files;
mod listeners;
mod logging;
mod reload;
mod services;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write as _};

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};

use crate::config::{ChildCredentials, ConfigError, Loaded, PasswordOrigin, Settings};
use crate::lifecycle::{Drain, DrainTrigger, Newcomers, StopRequest};
use crate::supervisor::{self, Ended, News, Signals, StartError, Supervised};

use listeners::Taken;
use logging::LogSwitch;
use reload::Hangup;
use services::Reloading;

/// What ends `serve`.
const STOP: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::QUIT];

/// What the program was started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Wrap a command.
    Run(Vec<OsString>),
    /// Serve until told to stop.
    Serve,
    /// Say what the settings mean.
    Check,
}

/// Does the work; how the process is to end.
///
/// # Errors
/// What kept it from being done; see [`exit_code`].
pub fn run(loaded: &Loaded, work: &Work) -> anyhow::Result<Ended> {
    if *work == Work::Check {
        listeners::check_loops(loaded)?;
        // A reader that has enough (`| head -1`) is no failure.
        let _reader_gone = io::stdout().write_all(crate::config::describe(loaded).as_bytes());
        return Ok(Ended::Code(0));
    }
    let log = logging::start(loaded.settings.log);
    supervisor::close_memory();
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = runtime(loaded.settings.workers)?;
    let ended = runtime.block_on(live(loaded, work, log));
    // A name look-up that hangs in its thread must not hold up the exit.
    runtime.shutdown_background();
    ended
}

/// The exit code for an error: 2 for the settings, a shell's for a command that cannot start, else 1.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<StartError>() {
        return error.exit_code();
    }
    if error.downcast_ref::<ConfigError>().is_some() { 2 } else { 1 }
}

fn runtime(workers: usize) -> io::Result<Runtime> {
    match workers {
        1 => Builder::new_current_thread().enable_all().build(),
        workers => Builder::new_multi_thread().worker_threads(workers).enable_all().build(),
    }
}

async fn live(loaded: &Loaded, work: &Work, log: LogSwitch) -> anyhow::Result<Ended> {
    if *work == Work::Serve && loaded.variables.is_empty() {
        let problem = "nothing to serve: neither DATABASE_URL nor REDIS_URL is set; set one, or \
            name other variables in TIDEGATE_POSTGRES_URLS or TIDEGATE_REDIS_URLS";
        return Err(ConfigError::new("serve", problem).into());
    }
    if *work == Work::Serve {
        warn_of_unknown_passwords(&loaded.settings);
    }
    let (caught, taken, newcomers) = match work {
        Work::Run(_) => (Signals::for_command(), Taken::Next, Newcomers::Refused),
        Work::Serve | Work::Check => (Signals::new(), Taken::Refuse, Newcomers::LeftToOthers),
    };
    let mut signals = caught.context("cannot catch signals")?;
    let bound = listeners::bind(loaded, taken).await?;
    let child = match work {
        Work::Run(_) => ChildCredentials::made(loaded)?,
        Work::Serve | Work::Check => ChildCredentials::default(),
    };
    let variables = bound.local_urls(loaded, &child)?;
    let (trigger, drain) = Drain::new();
    // Under `run` the command decides when to stop.
    let stop = (*work == Work::Serve).then(StopRequest::default);
    let reloading = Reloading {
        log,
        hangup: if signals.hears(Signal::HUP) { Hangup::Reloads } else { Hangup::Ignored },
        child,
    };
    services::start(loaded, bound, &drain, stop.clone(), reloading)?;
    let ended = match work {
        Work::Run(command) => wrap(loaded, command, &variables, &mut signals, &trigger).await?,
        Work::Serve | Work::Check => {
            raise_file_limit();
            tokio::select! {
                signal = signals.any_of(&STOP) => {
                    tracing::info!(signal = signal.as_raw(), "told to stop");
                }
                () = asked(stop) => tracing::info!("told to stop in the console"),
            }
            Ended::Code(0)
        }
    };
    trigger.start(loaded.settings.drain, newcomers);
    let in_time = tokio::select! {
        in_time = trigger.finished() => in_time,
        // A platform may send SIGTERM twice, and means no haste; a person at a terminal does.
        _signal = signals.any_of(&[Signal::INT]) => false,
    };
    let cut_off = drain.cut_off();
    if !in_time || cut_off > 0 {
        let sessions = cut_off.max(drain.live());
        tracing::warn!(
            sessions,
            "stopped with sessions unfinished: raise drain_ms to give them longer"
        );
    }
    Ok(ended)
}

/// Waits until somebody asks to stop, if anybody may.
async fn asked(stop: Option<StopRequest>) {
    match stop {
        Some(stop) => stop.made().await,
        None => std::future::pending().await,
    }
}

/// `serve` tells nobody of a password that was made.
fn warn_of_unknown_passwords(settings: &Settings) {
    let listeners = settings.redis.iter().flat_map(|redis| &redis.listeners);
    for known in listeners.flat_map(|listener| &listener.namespaces) {
        if known.origin == PasswordOrigin::Made {
            tracing::warn!(
                namespace = &*known.namespace.name,
                "nobody knows the namespace's password, which is made at each start: give it a password, or password_env"
            );
        }
    }
}

/// Starts the command, lives as long as it does; how it ended.
async fn wrap(
    loaded: &Loaded,
    command: &[OsString],
    variables: &[(String, String)],
    signals: &mut Signals,
    trigger: &DrainTrigger,
) -> anyhow::Result<Ended> {
    if variables.is_empty() {
        tracing::warn!("nothing to pool: neither DATABASE_URL nor REDIS_URL is set");
    }
    for variable in loaded.left_passwords() {
        tracing::info!(
            variable,
            "holds a pooled server's password, and the command inherits it: unset it, or have it pooled, too"
        );
    }
    let mut supervised = Supervised::start(command, variables, &loaded.hidden_variables())?;
    // After the start: the command's own limit stays what it was.
    raise_file_limit();
    let pid = supervised.pid();
    tracing::info!(pid, pooled = variables.len(), "command started");
    let settings = &loaded.settings;
    let ended = supervised.wait(signals, settings.child_grace, |news| match news {
        News::Told => {
            tracing::info!(
                pid,
                "the command was told to end: it is served until it has, and no server connection stays idle"
            );
            trigger.give_notice();
        }
        News::Overdue => {
            tracing::warn!(pid, "the command has not ended in time after SIGTERM: draining without it");
            trigger.start(settings.drain, Newcomers::Refused);
        }
    });
    let ended = ended.await;
    let processes = supervisor::left_behind();
    if !processes.is_empty() {
        tracing::warn!(
            processes,
            "the command has ended and left processes behind: their connections are drained, and tidegate ends"
        );
    }
    match ended {
        Ended::Code(code) => tracing::info!(pid, code, "command ended"),
        Ended::Signal(signal) => tracing::info!(pid, signal, "command ended by a signal"),
    }
    Ok(ended)
}

/// Each client is a file descriptor: takes all the system allows.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}
