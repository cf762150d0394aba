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
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

use crate::config::{ChildCredentials, ConfigError, Loaded, PasswordOrigin, Settings};
use crate::lifecycle::{Drain, DrainTrigger, Newcomers, StopRequest};
use crate::net::SocketFile;
use crate::supervisor::{self, Ended, News, Signals, StartError, Supervised};

use herald::Herald;
use listeners::Taken;
use logging::LogSwitch;
use passed::Passed;
use reload::Hangup;
use services::{Outward, Reloading, Serving};
use takeover::{Control, Earlier, Successor};

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

/// What the process has from its first listener to its last session.
struct Life {
    signals: Signals,
    trigger: DrainTrigger,
    drain: Drain,
    /// Under `run` the command decides when to stop.
    stop: Option<StopRequest>,
    herald: Herald,
}

/// All that serves.
struct Opened {
    /// For the wrapped command.
    variables: Vec<(String, String)>,
    socket_files: Vec<Weak<SocketFile>>,
    control: Option<Control>,
    serving: Serving,
    start: Start,
}

/// In whose place we serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Afresh,
    AfterPredecessor,
}

async fn live(
    loaded: &Loaded,
    work: &Work,
    log: LogSwitch,
    manager: Manager,
) -> anyhow::Result<Ended> {
    if *work == Work::Serve {
        check_serve(loaded)?;
    }
    let (caught, newcomers) = match work {
        Work::Run(_) => (Signals::for_command(), Newcomers::Refused),
        Work::Serve | Work::Check => (Signals::new(), Newcomers::LeftToOthers),
    };
    let Manager { herald, passed } = manager;
    let signals = caught.context("cannot catch signals")?;
    let (trigger, drain) = Drain::new();
    let stop = (*work == Work::Serve).then(StopRequest::default);
    let mut life = Life { signals, trigger, drain, stop, herald };
    let opened = open(loaded, work, log, passed, &life).await?;
    let socket_files = opened.socket_files.clone();
    let ended = match work {
        Work::Run(command) => {
            let supervised = start(loaded, command, &opened.variables)?;
            life.herald.ready();
            wrap(loaded, supervised, &mut life).await
        }
        Work::Serve | Work::Check => {
            serve(loaded, &mut life, opened).await;
            Ended::Code(0)
        }
    };
    finish(loaded.settings.drain, newcomers, life).await;
    // Those that are still listened on: other threads may not come to it before the process ends.
    socket_files.iter().filter_map(Weak::upgrade).for_each(|file| file.remove());
    Ok(ended)
}

fn check_serve(loaded: &Loaded) -> Result<(), ConfigError> {
    if loaded.variables.is_empty() {
        let problem = "nothing to serve: neither DATABASE_URL nor REDIS_URL is set; set one, or \
            name other variables in TIDEGATE_POSTGRES_URLS or TIDEGATE_REDIS_URLS";
        return Err(ConfigError::new("serve", problem));
    }
    warn_of_unknown_passwords(&loaded.settings);
    Ok(())
}

/// Opens the listeners, or takes them over, and lets clients in.
async fn open(
    loaded: &Loaded,
    work: &Work,
    log: LogSwitch,
    mut passed: Passed,
    life: &Life,
) -> anyhow::Result<Opened> {
    let sockets = &loaded.settings.sockets;
    let control = sockets.control.as_deref().filter(|_| *work == Work::Serve);
    let predecessor = takeover::predecessor(control, &mut passed).await?;
    let child = match work {
        Work::Run(_) => ChildCredentials::made(loaded)?,
        Work::Serve | Work::Check => ChildCredentials::default(),
    };
    let taken = match (work, control, &predecessor) {
        (Work::Run(_), ..) => Taken::Next,
        (_, Some(_), None) => Taken::Await,
        _ => Taken::Refuse,
    };
    let bound = listeners::bind(loaded, taken, &mut passed).await?;
    let mut control = match control {
        Some(path) => Some(Control::open(path, taken, &mut passed, &bound).await?),
        None => None,
    };
    let (variables, socket_files) = (bound.local_urls(loaded, &child)?, bound.socket_files());
    let hears = life.signals.hears(Signal::HUP);
    let hangup = if hears { Hangup::Reloads } else { Hangup::Ignored };
    let reloading = Reloading { log, hangup, child, herald: life.herald.clone() };
    let (elsewhere, foreign) = mpsc::channel(FOREIGN_CANCELS);
    let elsewhere = predecessor.as_ref().map(|_| elsewhere);
    let outward = Outward { stop: life.stop.clone(), elsewhere };
    let built = services::build(loaded, bound, &life.drain, outward, reloading)?;
    // From here on nothing fails but the takeover itself.
    let Some(mut predecessor) = predecessor else {
        let (serving, start) = (built.open(), Start::Afresh);
        return Ok(Opened { variables, socket_files, control, serving, start });
    };
    predecessor.relieve().await.context("the process before us has not handed over")?;
    let (pid, serving) = (predecessor.pid(), built.open());
    let earlier = Earlier::of(predecessor.with_earlier(), &serving);
    control.iter_mut().for_each(|control| control.claim(sockets.mode, earlier.clone()));
    passed.discard();
    tracing::info!(pid, "taken over");
    tokio::spawn(earlier.pass_cancels(foreign));
    Ok(Opened { variables, socket_files, control, serving, start: Start::AfterPredecessor })
}

/// Serves until told to stop, or until another process has taken over and had its time.
async fn serve(loaded: &Loaded, life: &mut Life, opened: Opened) {
    raise_file_limit();
    match opened.start {
        Start::Afresh => life.herald.ready(),
        Start::AfterPredecessor => life.herald.ready_in_its_place(),
    }
    let (end, successor) = end_of_service(life, opened.control).await;
    if let Some(successor) = successor {
        tracing::info!(pid = successor.pid(), "handed over: serving those who are here");
        tokio::spawn(successor.pass_cancels(opened.serving.postgres));
    }
    if end == End::Told {
        life.herald.stopping();
        return;
    }
    // The service goes on, in another process: the manager hears nothing of our end.
    life.herald.handed_over();
    tokio::select! {
        () = tokio::time::sleep(loaded.settings.handover) => {}
        _hurry = life.signals.any_of(&STOP) => {}
    }
}

/// Why `serve` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// We are told to stop.
    Told,
    /// Another process has taken over.
    HandedOver,
}

/// Waits until we are told to stop, or another process has taken over: that one. It may have come just before we were told. The
/// control socket goes with it.
async fn end_of_service(life: &mut Life, mut control: Option<Control>) -> (End, Option<Successor>) {
    let handed_over = async {
        match &mut control {
            Some(control) => control.handed_over(&life.trigger).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        signal = life.signals.any_of(&STOP) => {
            tracing::info!(signal = signal.as_raw(), "told to stop");
        }
        () = asked(life.stop.clone()) => {
            tracing::info!("told to stop in the console");
        }
        successor = handed_over => return (End::HandedOver, Some(successor)),
    }
    let successor = match &mut control {
        Some(control) => control.hand_over_at_once().await,
        None => None,
    };
    (End::Told, successor)
}

/// Drains.
async fn finish(grace: Duration, newcomers: Newcomers, mut life: Life) {
    life.trigger.start(grace, newcomers);
    let in_time = tokio::select! {
        in_time = life.trigger.finished() => in_time,
        // A platform may send SIGTERM twice, and means no haste; a person at a terminal does.
        _signal = life.signals.any_of(&[Signal::INT]) => false,
    };
    let cut_off = life.drain.cut_off();
    if !in_time || cut_off > 0 {
        let sessions = cut_off.max(life.drain.live());
        tracing::warn!(
            sessions,
            "stopped with sessions unfinished: raise drain_ms to give them longer"
        );
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
    for variable in loaded.left_passwords() {
        tracing::info!(
            variable,
            "holds a pooled server's password, and the command inherits it: unset it, or have it pooled, too"
        );
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
async fn wrap(loaded: &Loaded, mut supervised: Supervised, life: &mut Life) -> Ended {
    let Life { signals, trigger, herald, .. } = life;
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
    herald.stopping();
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
