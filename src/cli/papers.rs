//! The manual page and the shells' completions, written from the command line's own description, so that neither can say
//! anything else.

use std::io;

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;

/// Writes `shell`'s completions to `out`.
///
/// # Errors
/// When `out` takes no more.
pub fn completions(shell: Shell, out: &mut impl io::Write) -> io::Result<()> {
    // The generator panics where it cannot write: it writes to memory.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut text);
    out.write_all(&text)
}

/// Writes the manual page to `out`, in troff: of the whole program, or of one of its commands.
///
/// # Errors
/// When there is no command of that name, or `out` takes no more.
pub fn manual(command: Option<&str>, out: &mut impl io::Write) -> io::Result<()> {
    let mut whole = Cli::command();
    // The commands' full names and the flags that all share.
    whole.build();
    let page = match command {
        None => whole,
        Some(name) => {
            let found = whole.find_subcommand(name).cloned();
            found.ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("there is no command {name:?}"))
            })?
        }
    };
    Man::new(page).render(out)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_completes_every_command_and_flag() {
        for shell in Shell::value_variants() {
            let mut text = Vec::new();
            completions(*shell, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            for word in ["serve", "check", "postgres-pool-size", "redis-listen"] {
                assert!(text.contains(word), "{shell} lacks {word}");
            }
        }
    }

    #[test]
    fn the_manual_has_every_flag_and_each_commands_own_words() {
        let page = |command| {
            let mut text = Vec::new();
            manual(command, &mut text).unwrap();
            String::from_utf8(text).unwrap().replace('\\', "")
        };
        let whole = page(None);
        for word in [".TH tidegate 1", "--postgres-pool-size", "TIDEGATE_CONFIG", "tidegate-serve"]
        {
            assert!(whole.contains(word), "{whole} lacks {word}");
        }
        assert!(page(Some("run")).contains("127 if it was not found"), "{}", page(Some("run")));
        assert!(manual(Some("sevre"), &mut Vec::new()).is_err());
    }
}
