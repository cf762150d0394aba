//! The most frequent commands, judged without the table: one key, right behind the name, and a reply that names nothing.
//!
//! A test holds this to what the table says.

use super::super::command::packed;
use super::super::wire::{short_line, write_line};
use super::{Mode, Namespace, Rights};

/// What the judgement of a frequent command comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frequent {
    /// It goes as it was sent.
    AsSent,
    /// What goes instead was written.
    Written,
}

/// Names that are looked at here, shorter than nine letters.
const READS: &[u64] = &[
    packed(b"GET"),
    packed(b"HGET"),
    packed(b"TTL"),
    packed(b"HGETALL"),
    packed(b"HMGET"),
    packed(b"LLEN"),
    packed(b"LRANGE"),
    packed(b"ZRANGE"),
    packed(b"ZSCORE"),
    packed(b"SMEMBERS"),
];
const WRITES: &[u64] = &[
    packed(b"SET"),
    packed(b"INCR"),
    packed(b"EXPIRE"),
    packed(b"HSET"),
    packed(b"SETEX"),
    packed(b"LPUSH"),
    packed(b"RPUSH"),
    packed(b"SADD"),
    packed(b"ZADD"),
    packed(b"INCRBY"),
    packed(b"HINCRBY"),
    packed(b"HDEL"),
    packed(b"LPOP"),
    packed(b"RPOP"),
    packed(b"SREM"),
    packed(b"ZREM"),
    packed(b"PEXPIRE"),
    packed(b"PSETEX"),
];
/// These take more keys, but have one here.
const WITH_ONE: &[u64] = &[packed(b"DEL"), packed(b"UNLINK")];
/// Room made at first for what goes instead: a pipeline of short commands.
const PIPELINE_BYTES: usize = 2048;
/// Longest name of them.
const NAME_LIMIT: usize = 8;

impl Namespace {
    /// Judges a whole command if it is a frequent one, and all is well with it; for a client that knows of no prefix what goes
    /// instead is added to `written`. `None`: [`Namespace::judge`] has the word.
    #[must_use]
    pub fn judge_frequent(&self, command: &[u8], written: &mut Vec<u8>) -> Option<Frequent> {
        if command.len() > self.value_bytes {
            return None;
        }
        let (count, rest) = number(command, b'*')?;
        let (length, name) = number(rest, b'$')?;
        let rest = name.get(length..)?.strip_prefix(b"\r\n")?;
        let name = name.get(..length).filter(|name| name.len() <= NAME_LIMIT)?;
        // What begins with a nought would pack like what follows it.
        name.first().filter(|letter| letter.is_ascii_alphabetic())?;
        let (length, behind) = number(rest, b'$')?;
        let key = behind.get(..length)?;
        let name = packed(name);
        let writes = WRITES.contains(&name) || (count == 2 && WITH_ONE.contains(&name));
        if !(READS.contains(&name) || (writes && self.rights == Rights::ReadWrite)) {
            return None;
        }
        match self.mode {
            Mode::Enforce => self.owns(key).then_some(Frequent::AsSent),
            Mode::Prefix => {
                let prefix = self.prefix();
                if written.capacity() == 0 {
                    written.reserve(PIPELINE_BYTES);
                }
                written.extend_from_slice(&command[..command.len() - rest.len()]);
                write_line(b'$', prefix.len() + length, written);
                written.extend_from_slice(prefix);
                written.extend_from_slice(behind);
                Some(Frequent::Written)
            }
        }
    }
}

/// The number behind `kind`, and what follows its line.
fn number(bytes: &[u8], kind: u8) -> Option<(usize, &[u8])> {
    let behind = bytes.strip_prefix(&[kind])?;
    if let Some((number, length)) = short_line(behind) {
        return Some((usize::try_from(number).ok()?, &behind[length..]));
    }
    let mut rest = behind;
    let mut number = 0_usize;
    while let Some((digit @ b'0'..=b'9', more)) = rest.split_first() {
        number = number.checked_mul(10)?.checked_add(usize::from(digit - b'0'))?;
        rest = more;
    }
    Some((number, rest.strip_prefix(b"\r\n")?))
}

#[cfg(test)]
mod tests {
    use super::super::replies::Shape;
    use super::super::tests::namespace;
    use super::super::{Judgement, Mode};
    use super::*;
    use crate::redis::command::{Carriage, carriage};
    use crate::redis::wire::write_command;

    fn name(packed: u64) -> String {
        let bytes = packed.to_be_bytes();
        String::from_utf8(bytes.iter().copied().filter(|byte| *byte != 0).collect()).unwrap()
    }

    #[test]
    fn what_is_judged_here_is_judged_alike_by_the_table() {
        let mut judged = 0;
        for mode in [Mode::Enforce, Mode::Prefix] {
            for rights in [Rights::ReadWrite, Rights::ReadOnly] {
                let namespace = Namespace { rights, ..namespace(mode) };
                for packed in READS.iter().chain(WRITES).chain(WITH_ONE) {
                    let name = name(*packed);
                    for spelt in [name.clone(), name.to_lowercase()] {
                        for key in ["cache:a", "queue:a", "", "cache:"] {
                            for more in [&[][..], &["1"], &["1", "2"]] {
                                let words: Vec<&str> = [&[&spelt[..], key][..], more].concat();
                                judged += u32::from(compare(&namespace, &words));
                            }
                        }
                    }
                }
            }
        }
        assert!(judged > 1000, "{judged}");
    }

    fn compare(namespace: &Namespace, words: &[&str]) -> bool {
        let (mut raw, mut written) = (Vec::new(), Vec::new());
        write_command(words, &mut raw);
        let Some(found) = namespace.judge_frequent(&raw, &mut written) else {
            assert!(written.is_empty());
            return false;
        };
        let bytes: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        assert_eq!(carriage(bytes.iter().copied()), Carriage::Lane, "{words:?}");
        match namespace.judge(&bytes) {
            Judgement::Passes => assert_eq!(found, Frequent::AsSent, "{words:?}"),
            Judgement::Becomes(becomes, Shape::Plain) => {
                let mut expected = Vec::new();
                write_command(&becomes, &mut expected);
                assert_eq!((found, &written), (Frequent::Written, &expected), "{words:?}");
            }
            other => panic!("{words:?}: {other:?}"),
        }
        true
    }

    #[test]
    fn what_is_no_frequent_command_is_left_alone() {
        let namespace = namespace(Mode::Enforce);
        let mut written = Vec::new();
        for raw in [
            &b"*2\r\n$3\r\nGET\r\n$7\r\nqueue:a\r\n"[..],
            b"*2\r\n$4\r\nKEYS\r\n$7\r\ncache:a\r\n",
            b"*3\r\n$3\r\nDEL\r\n$7\r\ncache:a\r\n$7\r\nqueue:a\r\n",
            b"*1\r\n$3\r\nGET\r\n",
            b"*2\r\n$99999999999999999999\r\nGET\r\n$7\r\ncache:a\r\n",
            b"get cache:a\r\n",
            b"*2\r\n$4\r\n\0GET\r\n$7\r\ncache:a\r\n",
            b"*2\r\n$4\r\n GET\r\n$7\r\ncache:a\r\n",
            b"",
        ] {
            assert_eq!(namespace.judge_frequent(raw, &mut written), None, "{raw:?}");
        }
    }
}
