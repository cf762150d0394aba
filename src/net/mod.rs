//! Ground floor of the network: streams, listeners, the thread's read buffer.
