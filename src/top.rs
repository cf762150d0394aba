//! `tidegate top`: what the status page shows, in a terminal. A client of the admin port, of whichever process.

mod port;
mod screen;
mod text;
mod words;

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::status::Status;

pub use port::{AdminPort, NoStatus};
use screen::View;

/// Time between two questions to the port.
const EVERY: Duration = Duration::from_secs(1);
/// How often the reader of keys looks whether anybody still wants them.
const KEY_PATIENCE: Duration = Duration::from_millis(250);
/// Most keys that wait to be read.
const KEYS: usize = 64;

/// How to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// On the whole terminal, until told to quit; as [`Show::Once`] where there is none.
    Live,
    /// As plain text, once.
    Once,
}

/// Shows what `port` tells.
///
/// # Errors
/// The port does not answer, or there is no terminal to draw on.
pub fn run(port: AdminPort, show: Show) -> anyhow::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let is_live = show == Show::Live && io::stdout().is_terminal();
    let outcome =
        if is_live { runtime.block_on(live(port)) } else { runtime.block_on(once(&port)) };
    // A name look-up that hangs in its thread must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

async fn once(port: &AdminPort) -> anyhow::Result<()> {
    let status = port.status().await?;
    // A reader that has enough (`| head -1`) is no failure.
    let _reader_gone = io::stdout().write_all(text::whole(&status, port.url()).as_bytes());
    Ok(())
}

/// The terminal while it is ours; given back whatever happens. ratatui gives it back before a panic is told.
struct Borrowed(DefaultTerminal);

impl Borrowed {
    fn take() -> anyhow::Result<Self> {
        ratatui::try_init().map(Self).or_else(|error| {
            ratatui::restore();
            Err(error)
                .context("cannot draw on this terminal; `tidegate top --once` writes plain text")
        })
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

async fn live(port: AdminPort) -> anyhow::Result<()> {
    let mut stop = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut view = View::new(port.url().to_owned());
    let mut answers = ask_again_and_again(port);
    let mut terminal = Borrowed::take()?;
    let mut keys = read_keys();
    loop {
        terminal.0.draw(|frame| screen::draw(frame, &mut view, Instant::now()))?;
        let next = tokio::select! {
            answer = answers.recv() => {
                if let Some(answer) = answer {
                    view.hear(answer, Instant::now());
                }
                Next::Draw
            }
            event = keys.recv() => event.map_or(Next::Quit, |event| obey(&event, &mut view)),
            _ = stop.recv() => Next::Quit,
            _ = hangup.recv() => Next::Quit,
        };
        if next == Next::Quit {
            return Ok(());
        }
    }
}

/// What comes after an event.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Draw,
    Quit,
}

fn obey(event: &Event, view: &mut View) -> Next {
    let Event::Key(key) = event else { return Next::Draw };
    if key.kind == KeyEventKind::Release {
        return Next::Draw;
    }
    let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return Next::Quit,
        KeyCode::Char('c' | 'd') if with_control => return Next::Quit,
        KeyCode::Down | KeyCode::Char('j') => view.scroll_down(1),
        KeyCode::Up | KeyCode::Char('k') => view.scroll_up(1),
        KeyCode::PageDown => view.scroll_down(10),
        KeyCode::PageUp => view.scroll_up(10),
        KeyCode::Home | KeyCode::Char('g') => view.scroll_up(usize::MAX),
        KeyCode::Tab | KeyCode::Right | KeyCode::Char('l') => view.next_pool(),
        KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => view.previous_pool(),
        _ => {}
    }
    Next::Draw
}

fn ask_again_and_again(port: AdminPort) -> mpsc::Receiver<Result<Status, NoStatus>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while sender.send(port.status().await).await.is_ok() {
            tokio::time::sleep(EVERY).await;
        }
    });
    receiver
}

/// Reading keys blocks: it has a thread of its own, which ends when nobody wants them any more.
fn read_keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(KEYS);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            // When the terminal is gone so is the sender, and with it the program.
            let Ok(is_there) = event::poll(KEY_PATIENCE) else { return };
            if !is_there {
                continue;
            }
            let Ok(event) = event::read() else { return };
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use ratatui::crossterm::event::KeyEvent;

    use super::*;

    fn press(code: KeyCode, modifiers: KeyModifiers, view: &mut View) -> Next {
        obey(&Event::Key(KeyEvent::new(code, modifiers)), view)
    }

    #[test]
    fn q_escape_and_control_c_quit() {
        let mut view = View::new(String::new());
        for (code, modifiers) in [
            (KeyCode::Char('q'), KeyModifiers::NONE),
            (KeyCode::Esc, KeyModifiers::NONE),
            (KeyCode::Char('c'), KeyModifiers::CONTROL),
        ] {
            assert_eq!(press(code, modifiers, &mut view), Next::Quit);
        }
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::NONE, &mut view), Next::Draw);
        assert_eq!(obey(&Event::Resize(20, 5), &mut view), Next::Draw);
    }
}
