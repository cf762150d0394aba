//! The handles of one namespace of a Redis pool.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::{NAMESPACE, Protocol, Registered, help};

#[derive(Debug)]
pub(super) struct NamespaceFamilies {
    commands: IntCounterVec,
    refusals: IntCounterVec,
    bytes: IntCounterVec,
    clients: IntGaugeVec,
    pinned: IntGaugeVec,
    waits: IntCounterVec,
    flushed_keys: IntCounterVec,
    keys: IntGaugeVec,
    memory: IntGaugeVec,
}

impl NamespaceFamilies {
    pub(super) fn register(registry: &Registry) -> Registered<Self> {
        let gauge = |name: &str, help: &str| -> Registered<IntGaugeVec> {
            let family = IntGaugeVec::new(Opts::new(name, help), &NAMESPACE)?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        let counter = |name: &str, help: &str, extra: &[&str]| -> Registered<IntCounterVec> {
            let family = IntCounterVec::new(Opts::new(name, help), &[&NAMESPACE, extra].concat())?;
            registry.register(Box::new(family.clone()))?;
            Ok(family)
        };
        Ok(Self {
            commands: counter("tidegate_namespace_commands_total", help::NAMESPACE_COMMANDS, &[])?,
            refusals: counter(
                "tidegate_namespace_refusals_total",
                help::NAMESPACE_REFUSALS,
                &["command", "reason"],
            )?,
            bytes: counter(
                "tidegate_namespace_bytes_total",
                help::NAMESPACE_BYTES,
                &["direction"],
            )?,
            clients: gauge("tidegate_namespace_clients", help::NAMESPACE_CLIENTS)?,
            pinned: gauge("tidegate_namespace_pinned", help::NAMESPACE_PINNED)?,
            waits: counter("tidegate_namespace_waits_total", help::NAMESPACE_WAITS, &["limit"])?,
            flushed_keys: counter(
                "tidegate_namespace_flushed_keys_total",
                help::NAMESPACE_FLUSHED,
                &[],
            )?,
            keys: gauge("tidegate_namespace_keys", help::NAMESPACE_KEYS)?,
            memory: gauge("tidegate_namespace_memory_bytes", help::NAMESPACE_MEMORY)?,
        })
    }

    /// The handles of a namespace of a Redis pool.
    pub(super) fn resolve(&self, pool: &str, namespace: &str) -> NamespaceMetrics {
        let labels = [Protocol::Redis.as_str(), pool, namespace];
        let bytes = |direction: &str| {
            self.bytes.with_label_values(&[labels[0], pool, namespace, direction])
        };
        let waits =
            |limit: &str| self.waits.with_label_values(&[labels[0], pool, namespace, limit]);
        NamespaceMetrics {
            commands: self.commands.with_label_values(&labels),
            clients: self.clients.with_label_values(&labels),
            pinned: self.pinned.with_label_values(&labels),
            waits_commands: waits("commands"),
            waits_pinned: waits("pinned"),
            flushed_keys: self.flushed_keys.with_label_values(&labels),
            bytes_received: bytes("received"),
            bytes_sent: bytes("sent"),
            keys: self.keys.with_label_values(&labels),
            memory_bytes: self.memory.with_label_values(&labels),
            pool: pool.to_owned(),
            name: namespace.to_owned(),
            refusals: self.refusals.clone(),
        }
    }
}

/// The handles of one namespace.
#[derive(Debug)]
pub struct NamespaceMetrics {
    /// Commands of its clients.
    pub commands: IntCounter,
    /// Its clients.
    pub clients: IntGauge,
    /// Server connections that they keep for themselves.
    pub pinned: IntGauge,
    /// Waits for leave to send commands.
    pub waits_commands: IntCounter,
    /// Waits for leave to keep a connection.
    pub waits_pinned: IntCounter,
    /// Keys that its clients' flushes have removed.
    pub flushed_keys: IntCounter,
    /// Bytes read from them.
    pub bytes_received: IntCounter,
    /// Bytes written to them.
    pub bytes_sent: IntCounter,
    /// Its keys, estimated.
    pub keys: IntGauge,
    /// Their bytes, estimated.
    pub memory_bytes: IntGauge,
    pool: String,
    name: String,
    refusals: IntCounterVec,
}

impl NamespaceMetrics {
    /// A command was refused; both are short fixed words.
    pub fn refuse(&self, command: &str, reason: &str) {
        let labels = [Protocol::Redis.as_str(), &self.pool, &self.name, command, reason];
        self.refusals.with_label_values(&labels).inc();
    }
}
