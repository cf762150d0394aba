//! Ground floor of the network: streams, listeners, TLS on both sides, the thread's read buffer.

mod address;
mod buffer;
mod connect;
mod failures;
mod listener;
mod porch;
mod socket;
mod socket_file;
mod stream;
mod tls;

pub use address::Address;
pub use buffer::{READ_BUFFER_BYTES, with_read_buffer};
pub use connect::{Host, Keepalive, Spot, Vigilance, addresses, connect, connect_to};
pub use failures::LoginFailures;
pub use listener::{Listener, Opener, bind};
pub use porch::{Porch, PorchPlace};
pub use socket::Registered;
pub use socket_file::{Inode, PATH_BYTES, SocketError, SocketFile, listen as listen_on_socket};
pub use stream::{Opening, Stream};
pub use tls::{
    Agreed, Certificate, Encrypted, Handshake, Identity, ListenerTls, ListenerTlsSettings, Naming,
    Pin, Pins, Tls, TlsError, TlsSettings, TlsVersions, Verify, common_name, is_impostor, key_pin,
    server_end_point,
};
