//! Redis: one client's session over shared lanes and a few pinned backends.
