//! Both sides in lock step, and what differs.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::script::{Act, Command, Script, shown, write};
use super::stage::Stage;

pub struct Difference {
    pub step: usize,
    pub what: String,
}

/// A connection whose replies are kept as they came.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    at: usize,
}

/// Requests up to this size fit into the sockets' buffers, whatever the peer does.
const FITS_BYTES: usize = 16 * 1024;

impl Client {
    fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a socket");
        stream.set_write_timeout(Some(Duration::from_secs(15))).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        Self { stream, buffer: Vec::new(), at: 0 }
    }

    /// Writes, and reads so many replies; fewer when the connection ends or is silent.
    fn ask(&mut self, bytes: &[u8], piece: usize, replies: usize) -> Vec<Vec<u8>> {
        let mut stream = self.stream.try_clone().expect("a socket");
        let piece = if piece == 0 { bytes.len().max(1) } else { piece };
        let mut send = move || bytes.chunks(piece).all(|part| stream.write_all(part).is_ok());
        if bytes.len() <= FITS_BYTES {
            send();
            return self.replies(replies);
        }
        std::thread::scope(|scope| {
            scope.spawn(send);
            self.replies(replies)
        })
    }

    fn replies(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < count {
            if let Some(length) = frame(&self.buffer[self.at..]) {
                all.push(self.buffer[self.at..self.at + length].to_vec());
                self.at += length;
                continue;
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            let mut part = [0; 65536];
            match self.stream.read(&mut part) {
                Ok(read) if read > 0 => self.buffer.extend_from_slice(&part[..read]),
                ended => {
                    all.push(format!("(no reply: {ended:?})").into_bytes());
                    return all;
                }
            }
        }
        all
    }
}

/// The length of the first whole reply.
fn frame(bytes: &[u8]) -> Option<usize> {
    let line = bytes.iter().position(|&byte| byte == b'\n')? + 1;
    let number = || -> i64 {
        std::str::from_utf8(&bytes[1..line - 2])
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(-1)
    };
    let items = match bytes[0] {
        b'$' | b'=' | b'!' => {
            let whole = usize::try_from(number()).map_or(line, |length| line + length + 2);
            return (bytes.len() >= whole).then_some(whole);
        }
        b'*' | b'~' | b'>' => number(),
        b'%' => 2 * number(),
        _ => 0,
    };
    (0..items).try_fold(line, |at, _| Some(at + frame(&bytes[at..])?))
}

pub fn run(stage: &Stage, script: &Script) -> Result<(), Difference> {
    stage.clear();
    let ports = [stage.gate.redis_port(), stage.direct.port()];
    let fresh = |port: u16| (0..script.sessions).map(|_| Client::open(port)).collect();
    let mut sides: [Vec<Client>; 2] = ports.map(fresh);
    for (number, step) in script.steps.iter().enumerate() {
        let at = |what| Difference { step: number, what };
        let n = step.session;
        match &step.act {
            Act::Say { commands, piece } => {
                say(&mut sides, n, commands, *piece, commands.len()).map_err(at)?;
            }
            Act::Quit => {
                say(&mut sides, n, &[super::words::line("QUIT")], 0, 2).map_err(at)?;
                for (side, port) in sides.iter_mut().zip(ports) {
                    side[n] = Client::open(port);
                }
            }
            Act::Wait { command, other, push } => {
                let reset = super::words::line("DEL empty zempty");
                say(&mut sides, *other, &[super::words::line("SELECT 0"), reset], 0, 2)
                    .map_err(at)?;
                say(&mut sides, n, &[super::words::line("SELECT 0")], 0, 1).map_err(at)?;
                say(&mut sides, n, std::slice::from_ref(command), 0, 0).map_err(at)?;
                stage.until_blocked();
                say(&mut sides, *other, std::slice::from_ref(push), 0, 1).map_err(at)?;
                say(&mut sides, n, &[], 0, 1).map_err(at)?;
            }
            Act::Hear { channels, other, messages } => {
                hear(&mut sides, n, channels, *other, messages).map_err(at)?;
            }
        }
    }
    stage.assert_shared(script.sessions);
    Ok(())
}

fn hear(
    sides: &mut [Vec<Client>; 2],
    n: usize,
    channels: &[Command],
    other: usize,
    messages: &[Command],
) -> Result<(), String> {
    let named = |word: &str| {
        let mut command = super::words::line(word);
        command.extend(channels.iter().flatten().cloned());
        [command]
    };
    let heard = messages.iter().filter(|message| channels.iter().any(|name| name[0] == message[1]));
    say(sides, n, &named("SUBSCRIBE"), 0, channels.len())?;
    say(sides, other, messages, 0, messages.len())?;
    say(sides, n, &[], 0, heard.count())?;
    say(sides, n, &named("UNSUBSCRIBE"), 0, channels.len())
}

fn say(
    sides: &mut [Vec<Client>; 2],
    n: usize,
    commands: &[Command],
    piece: usize,
    replies: usize,
) -> Result<(), String> {
    let mut bytes = Vec::new();
    commands.iter().for_each(|command| write(command, &mut bytes));
    let [pooled, direct] = sides.each_mut().map(|side| side[n].ask(&bytes, piece, replies));
    for at in 0..pooled.len().max(direct.len()) {
        let [ours, theirs] = [&pooled, &direct].map(|side| side.get(at).map(|reply| plain(reply)));
        if ours != theirs {
            let [ours, theirs] = [ours, theirs].map(|reply| {
                let mut text = reply.unwrap_or_default().escape_ascii().to_string();
                text.truncate(600);
                text
            });
            let command = commands.get(at).map(shown).unwrap_or_default();
            return Err(format!(
                "session {n}, {at}: {command}\n  pooled: {ours}\n  direct: {theirs}"
            ));
        }
    }
    Ok(())
}

/// Without the connection's id, which HELLO tells, perhaps several times in the answer to EXEC.
fn plain(reply: &[u8]) -> Vec<u8> {
    const ID: &[u8] = b"$2\r\nid\r\n:";
    if !matches!(reply[0], b'*' | b'%') {
        return reply.to_vec();
    }
    let (mut kept, mut rest) = (Vec::new(), reply);
    while let Some(at) = rest.windows(ID.len()).position(|part| part == ID) {
        let (before, behind) = rest.split_at(at + ID.len());
        kept.extend_from_slice(before);
        let digits = behind.iter().take_while(|byte| byte.is_ascii_digit()).count();
        rest = &behind[digits..];
    }
    kept.extend_from_slice(rest);
    kept
}
