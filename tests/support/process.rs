//! A child process that ends with the test that started it, and keeps what it wrote.

use std::fs::File;
use std::io::{Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::kept::Kept;

pub struct Process {
    child: Child,
    output: Arc<Mutex<Vec<u8>>>,
    collectors: [JoinHandle<()>; 2],
    last_words: Signal,
    kept: Option<Kept>,
}

/// Longest time for the last words of a process that has ended to arrive: a child of its own may hold the pipes open.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Process {
    /// Starts `command` with no standard input; standard output and error are kept. `last_words`
    /// is the signal that ends it when it is dropped.
    pub fn start(mut command: Command, last_words: Signal) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let kept = Kept::of(&command, child.id());
        let (out, log) = (kept.as_ref().and_then(Kept::output), kept.as_ref().map(Kept::log));
        let output = Arc::default();
        let collectors = [
            collect(child.stdout.take().expect("piped"), &output, out),
            collect(child.stderr.take().expect("piped"), &output, log),
        ];
        Self { child, output, collectors, last_words, kept }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it wrote until now.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().expect("not poisoned")).into_owned()
    }

    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    pub fn signal(&self, signal: Signal) {
        let ends = [Signal::TERM, Signal::INT, Signal::QUIT, Signal::KILL].contains(&signal);
        self.kept.iter().filter(|_| ends).for_each(Kept::look);
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        // It may be gone already: then there is nothing to tell.
        let _gone = kill_process(pid, signal);
    }

    /// Sends `signal` and waits for the end; after `limit` it is killed, and `None` says so.
    pub fn end(&mut self, signal: Signal, limit: Duration) -> Option<ExitStatus> {
        self.signal(signal);
        self.wait(limit).or_else(|| {
            self.child.kill().expect("a child can be killed");
            self.child.wait().expect("a child can be waited for");
            None
        })
    }

    /// Waits for the end, and for all that it wrote.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                self.hear_out();
                return Some(status);
            }
            if started.elapsed() > limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn hear_out(&self) {
        let ended = Instant::now();
        while ended.elapsed() < LAST_WORDS && !self.collectors.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited().is_none() {
            self.end(self.last_words, Duration::from_secs(5));
        }
    }
}

fn collect(
    mut pipe: impl Read + Send + 'static,
    output: &Arc<Mutex<Vec<u8>>>,
    mut file: Option<File>,
) -> JoinHandle<()> {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = pipe.read(&mut chunk) {
            output.lock().expect("not poisoned").extend_from_slice(&chunk[..read]);
            if let Some(file) = &mut file {
                file.write_all(&chunk[..read]).expect("our own file");
            }
        }
    })
}
