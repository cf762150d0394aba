//! The binary: parse, load, run, exit code.

use std::io::{self, stdout};
use std::process::ExitCode;

use clap::Parser as _;
use tidegate::app::{self, Work};
use tidegate::cli::{self, Cli, Command, Flags};
use tidegate::config::{self, ConfigError, Loaded};
use tidegate::supervisor;
use tidegate::top::{self, AdminPort, Show};
use tikv_jemallocator::Jemalloc;

/// What a setting that cannot be taken, or a wrong command line, exits with.
const EXIT_USAGE: u8 = 2;

/// Exact size classes: an idle client costs two thirds of what it costs with the system's. How it is set: `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let Cli { command, flags } = Cli::parse();
    match command {
        Command::Run { command } => work(&flags, &Work::Run(command)),
        Command::Serve => work(&flags, &Work::Serve),
        Command::Check => work(&flags, &Work::Check),
        Command::Become { parent, command } => {
            let (code, error) = supervisor::become_command(parent, &command);
            if let Some(error) = error {
                eprintln!("tidegate: {error}");
            }
            ExitCode::from(code)
        }
        Command::Top { admin: Some(url), once } => look(&url, once),
        Command::Top { admin: None, once } => match load(&flags) {
            Ok(loaded) => look(&cli::admin_url(&loaded.settings.admin), once),
            Err(error) => refused(&error),
        },
        Command::Completions { shell } => written(cli::completions(shell, &mut stdout())),
        Command::Man { command } => written(cli::manual(command.as_deref(), &mut stdout())),
    }
}

fn load(flags: &Flags) -> Result<Loaded, ConfigError> {
    config::load(flags.config.as_deref(), &cli::environment(), &flags.given())
}

fn refused(error: &ConfigError) -> ExitCode {
    eprintln!("tidegate: {error}");
    ExitCode::from(EXIT_USAGE)
}

fn work(flags: &Flags, work: &Work) -> ExitCode {
    let loaded = match load(flags) {
        Ok(loaded) => loaded,
        Err(error) => return refused(&error),
    };
    match app::run(&loaded, work) {
        Ok(ended) => ended.end_likewise(),
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::from(app::exit_code(&error))
        }
    }
}

fn look(url: &str, once: bool) -> ExitCode {
    let show = if once { Show::Once } else { Show::Live };
    let port = AdminPort::at(url).map_err(anyhow::Error::from);
    match port.and_then(|port| top::run(port, show)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn written(outcome: io::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has enough (`| head -1`) is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error}");
            ExitCode::FAILURE
        }
    }
}
