//! What a script is: sessions, and what each does in its turn.

use std::fmt;

pub type Command = Vec<Vec<u8>>;

#[derive(Debug, Clone)]
pub struct Script {
    pub sessions: usize,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone)]
pub struct Step {
    pub session: usize,
    pub act: Act,
}

#[derive(Debug, Clone)]
pub enum Act {
    /// Commands in one flight, cut into writes of so many bytes (0: one write).
    Say { commands: Vec<Command>, piece: usize },
    /// One that finds nothing and waits, until another session has sent the second.
    Wait { command: Command, other: usize, push: Command },
    /// Subscribes, hears what another session publishes, unsubscribes.
    Hear { channels: Vec<Command>, other: usize, messages: Vec<Command> },
    /// Says goodbye; its next step is on a new connection.
    Quit,
}

impl Script {
    pub fn commands(&self) -> usize {
        self.steps.iter().map(|step| step.act.commands()).sum()
    }
}

impl Act {
    fn commands(&self) -> usize {
        match self {
            Self::Say { commands, .. } => commands.len(),
            Self::Wait { .. } => 2,
            Self::Hear { channels, messages, .. } => 2 * channels.len() + messages.len(),
            Self::Quit => 1,
        }
    }
}

/// As the wire has it. A single word with a blank in front is an inline command.
pub fn write(command: &Command, out: &mut Vec<u8>) {
    if let [line] = command.as_slice()
        && let Some(line) = line.strip_prefix(b" ")
    {
        out.extend_from_slice(line);
        out.extend_from_slice(b"\r\n");
        return;
    }
    out.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
    for word in command {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

pub fn shown(command: &Command) -> String {
    let words = command.iter().map(|word| match word.len() {
        0 => "''".to_owned(),
        1..=120 => word.escape_ascii().to_string(),
        length => format!("<{length} bytes>"),
    });
    words.collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} sessions", self.sessions)?;
        for (n, Step { session, act }) in self.steps.iter().enumerate() {
            match act {
                Act::Say { commands, piece } => {
                    let all: Vec<_> = commands.iter().map(shown).collect();
                    writeln!(f, "{n}: {session} says (by {piece}) {}", all.join(" | "))?;
                }
                Act::Wait { command, other, push } => {
                    writeln!(
                        f,
                        "{n}: {session} waits {}; {other}: {}",
                        shown(command),
                        shown(push)
                    )?;
                }
                Act::Hear { channels, other, messages } => {
                    let all: Vec<_> = channels.iter().chain(messages).map(shown).collect();
                    writeln!(f, "{n}: {session} hears {other}: {}", all.join(" | "))?;
                }
                Act::Quit => writeln!(f, "{n}: {session} quits")?,
            }
        }
        Ok(())
    }
}
