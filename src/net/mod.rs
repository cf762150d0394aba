//! Ground floor of the network: streams, listeners, TLS towards a server, the thread's read buffer.

mod buffer;
mod connect;
mod listener;
mod stream;
mod tls;

pub use buffer::{READ_BUFFER_BYTES, with_read_buffer};
pub use connect::{Host, connect};
pub use listener::{Listener, bind};
pub use stream::Stream;
pub use tls::{Tls, TlsError, TlsSettings, Verify};
