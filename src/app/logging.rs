//! Where log lines go: to standard error, in the form that was set.

use std::io;

use tracing_subscriber::Layer as _;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, LogLevel, LogSettings};

/// Changes the level of what is logged.
#[derive(Clone, Debug)]
pub(super) struct LogSwitch(reload::Handle<LevelFilter, Registry>);

impl LogSwitch {
    pub(super) fn set(&self, level: LogLevel) {
        let level = filter(level);
        if self.0.with_current(|now| *now == level).is_ok_and(|same| same) {
            return;
        }
        // Fails only when nothing is logged, as another had started logging before.
        let _nothing_logged = self.0.reload(level);
    }
}

/// Starts logging; once per process (a second call changes nothing).
pub(super) fn start(settings: LogSettings) -> LogSwitch {
    let (level, switch) = reload::Layer::new(filter(settings.level));
    let layer = match settings.format {
        LogFormat::Logfmt => {
            let layer = tracing_subscriber::fmt::layer()
                .event_format(tracing_logfmt::EventsFormatter::default())
                .fmt_fields(tracing_logfmt::FieldsFormatter::default());
            layer.with_writer(io::stderr).boxed()
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true);
            layer.with_writer(io::stderr).boxed()
        }
    };
    let _started_before = tracing_subscriber::registry().with(layer.with_filter(level)).try_init();
    LogSwitch(switch)
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
