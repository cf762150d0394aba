//! Tests of the pool against a server made of counters, on a clock that stands still.

mod changes;
mod fairness;
mod fake;
mod faults;
mod gates;
mod lending;
mod limits;
mod model;
mod stress;
