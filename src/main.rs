//! The binary: parse, load, run, exit code.

use std::process::ExitCode;

use clap::Parser as _;
use tidegate::app::{self, Work};
use tidegate::cli::{self, Cli, Command};
use tidegate::config;

/// What a setting that cannot be taken, or a wrong command line, exits with.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
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
    };
    match app::run(&loaded, &work) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("tidegate: {error:#}");
            ExitCode::from(app::exit_code(&error))
        }
    }
}
