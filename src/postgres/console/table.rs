//! Rows and how they travel: RowDescription and DataRow, in text or binary. No IO.

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int4,
    Int8,
    Numeric,
}

/// The columns of a table: names and types.
pub(super) type Columns = &'static [(&'static str, Kind)];

/// One value. Numbers are told as they are in text, and cut to what the column's type holds in binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Text(String),
    Number(u64),
}

/// Columns and rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) columns: Columns,
    pub(super) rows: Vec<Vec<Value>>,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(u64::try_from(number).unwrap_or(u64::MAX))
    }
}

/// How values are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Binary,
}

/// The formats of a Bind: none, one for all, or one for each column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Formats(pub(super) Vec<Format>);

impl Formats {
    fn of(&self, column: usize) -> Format {
        match self.0[..] {
            [] => Format::Text,
            [all] => all,
            _ => self.0.get(column).copied().unwrap_or(Format::Text),
        }
    }
}

impl Kind {
    const fn oid(self) -> u32 {
        match self {
            Self::Text => 25,
            Self::Int4 => 23,
            Self::Int8 => 20,
            Self::Numeric => 1700,
        }
    }

    const fn size(self) -> i16 {
        match self {
            Self::Text | Self::Numeric => -1,
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }

    fn binary(self, value: &Value) -> Vec<u8> {
        match (self, value) {
            (Self::Int4, Value::Number(number)) => {
                i32::try_from(*number).unwrap_or(i32::MAX).to_be_bytes().to_vec()
            }
            (Self::Int8, Value::Number(number)) => {
                i64::try_from(*number).unwrap_or(i64::MAX).to_be_bytes().to_vec()
            }
            (Self::Numeric, Value::Number(number)) => numeric(*number),
            (_, value) => text(value),
        }
    }
}

fn text(value: &Value) -> Vec<u8> {
    match value {
        Value::Null => Vec::new(),
        Value::Text(text) => text.replace('\0', "").into_bytes(),
        Value::Number(number) => number.to_string().into_bytes(),
    }
}

/// A whole number as Postgres sends `numeric`: digits to the base of ten thousand, the highest first.
fn numeric(number: u64) -> Vec<u8> {
    let mut digits: Vec<u16> = Vec::new();
    let mut rest = number;
    while rest > 0 {
        digits.push(u16::try_from(rest % 10_000).unwrap_or(0));
        rest /= 10_000;
    }
    digits.reverse();
    let count = u16::try_from(digits.len()).unwrap_or(0);
    let weight = count.saturating_sub(1);
    // Count, weight, sign, digits behind the point.
    let head = [count, weight, 0, 0];
    head.iter().chain(&digits).flat_map(|number| number.to_be_bytes()).collect()
}

/// `RowDescription`.
pub(super) fn describe(columns: Columns, formats: &Formats) -> Vec<u8> {
    let mut body = count(columns.len()).to_vec();
    for (at, (name, kind)) in columns.iter().enumerate() {
        body.extend_from_slice(name.as_bytes());
        // The name's end; no table, no column of it.
        body.extend_from_slice(&[0; 7]);
        body.extend_from_slice(&kind.oid().to_be_bytes());
        body.extend_from_slice(&kind.size().to_be_bytes());
        body.extend_from_slice(&(-1_i32).to_be_bytes());
        let format: u16 = if formats.of(at) == Format::Binary { 1 } else { 0 };
        body.extend_from_slice(&format.to_be_bytes());
    }
    frame(b'T', &body)
}

/// `DataRow`.
pub(super) fn data_row(columns: Columns, row: &[Value], formats: &Formats) -> Vec<u8> {
    let mut body = count(row.len()).to_vec();
    for (at, (value, (_, kind))) in row.iter().zip(columns).enumerate() {
        if *value == Value::Null {
            body.extend_from_slice(&(-1_i32).to_be_bytes());
            continue;
        }
        let bytes = match formats.of(at) {
            Format::Text => text(value),
            Format::Binary => kind.binary(value),
        };
        body.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
        body.extend_from_slice(&bytes);
    }
    frame(b'D', &body)
}

/// `CommandComplete`.
pub(super) fn complete(tag: &str) -> Vec<u8> {
    frame(b'C', &[tag.as_bytes(), b"\0"].concat())
}

fn count(columns: usize) -> [u8; 2] {
    u16::try_from(columns).unwrap_or(0).to_be_bytes()
}

/// A frame of a few bytes of ours.
pub(super) fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(4).to_be_bytes();
    [&[tag][..], &length, body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: Columns =
        &[("a", Kind::Text), ("b", Kind::Int4), ("c", Kind::Int8), ("d", Kind::Numeric)];

    #[test]
    fn rows_look_as_postgres_sends_them() {
        let described = describe(COLUMNS, &Formats::default());
        let first =
            [&b"a\0"[..], &[0; 6], &[0, 0, 0, 25, 0xff, 0xff], &[0xff; 4], &[0; 2]].concat();
        assert_eq!(described[..7], [b'T', 0, 0, 0, 86, 0, 4]);
        assert_eq!(described[7..27], first);
        assert_eq!(described.len(), 87);

        let row = [Value::from("x"), Value::Null, Value::from(7_u64), Value::from(10_000_u64)];
        let texts = b"\0\x04\0\0\0\x01x\xff\xff\xff\xff\0\0\0\x017\0\0\0\x0510000";
        assert_eq!(data_row(COLUMNS, &row, &Formats::default()), frame(b'D', texts));
        let binary = Formats(vec![Format::Binary]);
        let bytes = [
            &b"\0\x04\0\0\0\x01x\xff\xff\xff\xff\0\0\0\x08"[..],
            &[0, 0, 0, 0, 0, 0, 0, 7],
            &[0, 0, 0, 12, 0, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0],
        ];
        assert_eq!(data_row(COLUMNS, &row, &binary), frame(b'D', &bytes.concat()));
        let mixed = Formats(vec![Format::Text, Format::Text, Format::Text, Format::Binary]);
        assert!(data_row(COLUMNS, &row, &mixed).ends_with(&[0, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]));
    }

    #[test]
    fn numbers_beyond_a_column_are_cut() {
        assert_eq!(Kind::Int4.binary(&Value::Number(u64::MAX)), i32::MAX.to_be_bytes());
        assert_eq!(numeric(0), [0; 8]);
        assert_eq!(numeric(9_999), [0, 1, 0, 0, 0, 0, 0, 0, 0x27, 0x0f]);
    }
}
