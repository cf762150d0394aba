//! The binary: parse, load, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use tidegate::app::{self, Work};
use tidegate::cli::{self, Cli, Command};
use tidegate::config;
use tidegate::supervisor;
use tidegate::top::{self, AdminPort, Show};

/// What a setting that cannot be taken, or a wrong command line, exits with.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Top { admin: Some(url), once } = &cli.command {
        return look(url, *once);
    }
    if let Command::Become { parent, command } = &cli.command {
        let (code, error) = supervisor::become_command(*parent, command);
        if let Some(error) = error {
            eprintln!("tidegate: {error}");
        }
        return ExitCode::from(code);
    }
    let environment = cli::environment();
    let flags = cli.flags.given();
    let loaded = match config::load(cli.flags.config.as_deref(), &environment, &flags) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("tidegate: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let work = match cli.command {
        Command::Run { command } => Work::Run(command),
        Command::Serve => Work::Serve,
        Command::Check => Work::Check,
        // Done before the settings were read.
        Command::Become { .. } => return ExitCode::from(EXIT_USAGE),
        Command::Top { once, .. } => return look(&cli::admin_url(&loaded.settings.admin), once),
    };
    match app::run(&loaded, &work) {
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
