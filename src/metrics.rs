//! Counters and gauges, resolved once and handed down.
