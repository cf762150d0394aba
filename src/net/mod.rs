//! Ground floor of the network: streams, listeners, TLS on both sides, the thread's read buffer.

mod buffer;
mod connect;
mod failures;
mod listener;
mod porch;
mod stream;
mod tls;

pub use buffer::{READ_BUFFER_BYTES, with_read_buffer};
pub use connect::{Host, connect};
pub use failures::LoginFailures;
pub use listener::{Listener, bind};
pub use porch::{Porch, PorchPlace};
pub use stream::{Opening, Stream};
pub use tls::{
    Agreed, Certificate, Encrypted, Identity, ListenerTls, ListenerTlsSettings, Pin, Pins, Tls,
    TlsError, TlsSettings, Verify, common_name, is_impostor, key_pin, server_end_point,
};
