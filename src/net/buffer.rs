//! The thread's one read buffer: a session owns none, it borrows this while bytes are in flight.

use std::cell::RefCell;

/// Size of the thread's read buffer in bytes: a 1 MB result costs as little as with a larger one.
pub const READ_BUFFER_BYTES: usize = 64 * 1024;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(fresh());
}

/// Lends the thread's read buffer for the length of one call. Its content is whatever was read last,
/// by anybody: look only at what you have just read. Not to be nested (a nested call gets a fresh
/// buffer, which is correct but allocates).
pub fn with_read_buffer<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    READ_BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => f(&mut buffer),
        Err(_in_use) => f(&mut fresh()),
    })
}

fn fresh() -> Box<[u8]> {
    vec![0; READ_BUFFER_BYTES].into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_loan_never_shares_bytes_with_the_outer_one() {
        with_read_buffer(|outer| {
            outer[0] = 1;
            with_read_buffer(|inner| {
                assert_eq!(inner.len(), READ_BUFFER_BYTES);
                inner[0] = 2;
            });
            assert_eq!(outer[0], 1);
        });
    }
}
