//! Composition root: builds everything once and hands it down; the life of the process from the
//! first listener to the last session.

mod files;
mod herald;
mod listeners;
mod logging;
mod passed;
mod reload;
mod services;
mod takeover;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::sync::Weak;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::config::{ConfigError, FirstPasswords, Loaded, PasswordOrigin, Settings};
use crate::lifecycle::{Drain, DrainTrigger, Newcomers, StopRequest};
use crate::supervisor::{self, Ended, News, Signals, StartError, Supervised};

use herald::Herald;
use listeners::Taken;
use logging::LogSwitch;
use passed::Passed;
use reload::Hangup;
use services::{Outward, Reloading};
use takeover::{Control, Successor};

/// Most cancel requests that may be on their way to the process before us; more are let go.
const FOREIGN_CANCELS: usize = 64;

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
    let manager = Manager {
        herald: Herald::from_environment(),
        passed: Passed::from_environment().context("cannot take the service manager's sockets")?,
    };
    supervisor::close_memory();
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = runtime(loaded.settings.workers)?;
    let ended = runtime.block_on(live(loaded, work, log, manager));
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

/// What the service manager that started us wants and brings, if there is one.
struct Manager {
    herald: Herald,
    passed: Passed,
}

async fn live(
    loaded: &Loaded,
    work: &Work,
    log: LogSwitch,
    manager: Manager,
) -> anyhow::Result<Ended> {
    let Manager { herald, mut passed } = manager;
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
    let sockets = &loaded.settings.sockets;
    let control = sockets.control.as_deref().filter(|_| *work == Work::Serve);
    let predecessor = takeover::predecessor(control, &mut passed).await?;
    let bound = listeners::bind(loaded, taken, &mut passed).await?;
    let control = control.map(|path| Control::open(path, &mut passed, &bound)).transpose()?;
    let variables = bound.local_urls(loaded)?;
    let socket_files = bound.socket_files();
    let (trigger, drain) = Drain::new();
    // Under `run` the command decides when to stop.
    let stop = (*work == Work::Serve).then(StopRequest::default);
    let reloading = Reloading {
        log,
        hangup: if signals.hears(Signal::HUP) { Hangup::Reloads } else { Hangup::Ignored },
        // The command's environment doesn't change any more.
        first_passwords: match work {
            Work::Run(_) => FirstPasswords::Stay,
            Work::Serve | Work::Check => FirstPasswords::Expire,
        },
        herald: herald.clone(),
    };
    let (elsewhere, foreign) = mpsc::channel(FOREIGN_CANCELS);
    let elsewhere = predecessor.as_ref().map(|_| elsewhere);
    let outward = Outward { stop: stop.clone(), elsewhere };
    let built = services::build(loaded, bound, &drain, outward, reloading)?;
    // From here on nothing fails but the takeover itself.
    let takes_over = predecessor.is_some();
    if let Some(mut predecessor) = predecessor {
        predecessor.relieve().await.context("the process before us has not handed over")?;
        control.iter().for_each(|control| control.claim(sockets.mode));
        tracing::info!(pid = predecessor.pid(), "taken over");
        tokio::spawn(predecessor.pass_cancels(foreign));
    }
    passed.discard();
    let postgres = built.open();
    let ended = match work {
        Work::Run(command) => {
            let supervised = start(loaded, command, &variables)?;
            herald.ready();
            let ended = wrap(loaded, supervised, &mut signals, &trigger, &herald).await;
            herald.stopping();
            ended
        }
        Work::Serve | Work::Check => {
            raise_file_limit();
            if takes_over {
                herald.ready_in_its_place()
            } else {
                herald.ready()
            }
            let end = serve(&mut signals, stop, control, &trigger).await;
            if let End::HandedOver(successor) = end {
                tracing::info!(pid = successor.pid(), "handed over: serving those who are here");
                tokio::spawn(successor.pass_cancels(postgres));
                tokio::select! {
                    () = tokio::time::sleep(loaded.settings.handover) => {}
                    _hurry = signals.any_of(&STOP) => {}
                }
            } else {
                herald.stopping();
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
    // Those that are still listened on: other threads may not come to it before the process ends.
    socket_files.iter().filter_map(Weak::upgrade).for_each(|file| file.remove());
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

/// Why `serve` ends.
enum End {
    Told,
    HandedOver(Successor),
}

/// Serves until told to stop, or until another process has taken over.
async fn serve(
    signals: &mut Signals,
    stop: Option<StopRequest>,
    mut control: Option<Control>,
    trigger: &DrainTrigger,
) -> End {
    let handed_over = async {
        match &mut control {
            Some(control) => control.handed_over(trigger).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        signal = signals.any_of(&STOP) => {
            tracing::info!(signal = signal.as_raw(), "told to stop");
            End::Told
        }
        () = asked(stop) => {
            tracing::info!("told to stop in the console");
            End::Told
        }
        successor = handed_over => End::HandedOver(successor),
    }
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

/// Starts the command.
fn start(
    loaded: &Loaded,
    command: &[OsString],
    variables: &[(String, String)],
) -> anyhow::Result<Supervised> {
    if variables.is_empty() {
        tracing::warn!("nothing to pool: neither DATABASE_URL nor REDIS_URL is set");
    }
    // What the service manager says is for us, who are what it started.
    let managers = herald::VARIABLES.map(str::to_owned);
    let hidden: Vec<_> = loaded.hidden_variables().into_iter().chain(managers).collect();
    let supervised = Supervised::start(command, variables, &hidden)?;
    // After the start: the command's own limit stays what it was.
    raise_file_limit();
    tracing::info!(pid = supervised.pid(), pooled = variables.len(), "command started");
    Ok(supervised)
}

/// Lives as long as the command does; how it ended.
async fn wrap(
    loaded: &Loaded,
    mut supervised: Supervised,
    signals: &mut Signals,
    trigger: &DrainTrigger,
    herald: &Herald,
) -> Ended {
    let pid = supervised.pid();
    let settings = &loaded.settings;
    let ended = supervised.wait(signals, settings.child_grace, |news| match news {
        News::Told => {
            tracing::info!(
                pid,
                "the command was told to end: it is served until it has, and no server connection stays idle"
            );
            herald.stopping();
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
    ended
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
