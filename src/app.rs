//! Composition root: builds everything once and hands it down.
