//! What a client was told of a statement's rows must hold for every row it gets.
//!
//! A client that has a statement described once reads the rows of later executions by that. The server keeps the promise by
//! refusing a statement whose rows have come to look otherwise ("cached plan must not change result type"); here the
//! statement may be parsed anew on another connection, where nobody remembers. So the shape is remembered for each
//! session and each connection, and compared before a Bind passes that asks for no description of its own. Source:
//! PostgreSQL documentation, "Message Flow", extended query.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;

use super::super::statements::Shape;
use super::super::wire;
use super::{Ledger, Line};

/// Most bytes of a RowDescription that is awaited whole.
pub(super) const GATHERED_BYTES: u32 = 48 * 1024;

/// Bytes of a column's description behind its name.
const COLUMN_BYTES: usize = 18;

/// Whether the shape of a statement's rows is being asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checking {
    No,
    Awaited,
}

/// Whose statement was bound last, and to which portal.
#[derive(Debug, Default)]
pub(super) struct Bound {
    pub(super) portal: Box<[u8]>,
    pub(super) statement: Option<u64>,
}

/// How the rows of a statement look: names, types and modifiers of the columns of a whole RowDescription. `None` if it is no
/// such thing.
fn shape(body: &[u8]) -> Option<Shape> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut hasher = FixedState::default().build_hasher();
    for _ in 0..u16::from_be_bytes(*count) {
        let (name, behind) = wire::cstr(rest)?;
        let (column, behind) = behind.split_at_checked(COLUMN_BYTES)?;
        hasher.write(name);
        // The type; behind its length, which follows from it, the modifier.
        hasher.write(&column[6..10]);
        hasher.write(&column[12..16]);
        hasher.write_u8(0);
        rest = behind;
    }
    Some(Shape::Columns(hasher.finish()))
}

/// Whom the server tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Us,
    Client,
}

impl Line {
    /// The answer to a Describe of the statement with this number: a RowDescription or a NoData.
    pub(super) fn described(
        &mut self,
        ledger: &mut Option<Box<Ledger>>,
        (statement, told): (u64, Told),
        (tag, length, body): (u8, u32, &[u8]),
    ) {
        let shape = match tag {
            b'n' => Shape::NoRows,
            _ if body.len() < wire::widen(length) => Shape::Long,
            _ => shape(body).unwrap_or(Shape::Long),
        };
        let Some(ledger) = ledger.as_deref_mut() else { return };
        let statements = &mut ledger.statements;
        if statements.unnamed.as_ref().is_some_and(|unnamed| unnamed.id == statement) {
            self.unnamed_shape = Some(shape);
        } else {
            self.statements.note_shape(statement, shape);
        }
        // Only of utility commands (a FETCH before its cursor is there) may rows come all the same, and no server refuses those.
        if told == Told::Client && shape != Shape::NoRows {
            statements.note_told(statement, shape);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, kind: u8, modifier: u8, format: u8) -> Vec<u8> {
        let mut column = name.as_bytes().to_vec();
        column.extend([0, 9, 9, 9, 9, 8, 8, 0, 0, 0, kind, 0, 4, 0, 0, 0, modifier, 0, format]);
        column
    }

    #[test]
    fn a_shape_is_names_types_and_modifiers() {
        let one = |column: Vec<u8>| shape(&[&[0, 1][..], &column].concat());
        let base = one(column("a", 23, 0, 0));
        assert!(base.is_some());
        assert_eq!(base, one(column("a", 23, 0, 1)), "the format is the Bind's");
        for other in [column("b", 23, 0, 0), column("a", 25, 0, 0), column("a", 23, 5, 0)] {
            assert_ne!(base, one(other));
        }
        let two = shape(&[&[0, 2][..], &column("a", 1, 0, 0), &column("b", 2, 0, 0)].concat());
        let joined = shape(&[&[0, 2][..], &column("b", 2, 0, 0), &column("a", 1, 0, 0)].concat());
        assert_ne!(two, joined);
        assert_eq!(shape(&[0, 1, b'a']), None);
        assert_eq!(shape(&[]), None);
    }
}
