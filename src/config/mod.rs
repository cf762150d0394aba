//! Settings, in two steps: what was written (file, environment, flags), then what it means.

mod secret;
mod settings;

pub use crate::net::Host;
pub use secret::Secret;
pub use settings::{
    AdminSettings, Auth, LogFormat, LogLevel, LogSettings, PostgresLimits, PostgresListener,
    PostgresSettings, PostgresUpstream, RedisLimits, RedisListener, RedisSettings, RedisTls,
    RedisUpstream, Settings, SslMode,
};
