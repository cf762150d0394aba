//! The admin port: /metrics, /healthz, /readyz.
