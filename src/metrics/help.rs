//! What each family counts, for whoever reads /metrics the first time.

pub(super) const CLIENTS: &str = "Clients connected to tidegate, by what they do now: idle (no transaction), active (holding a server connection), waiting (in the queue for one), greeting (not yet logged in).";
pub(super) const SERVERS: &str = "Connections from tidegate to the server, by state: idle (ready to use), active (lent, running a statement), idle_in_transaction (lent, waiting for the client to go on), pinned (kept by one client across transactions), opening (connecting and logging in).";
pub(super) const SERVER_LIMIT: &str =
    "Most connections tidegate may have open to the upstream server, all its pools together.";
pub(super) const QUEUE: &str = "Clients waiting for a server connection now.";
pub(super) const QUEUE_MAX: &str = "Most clients that waited at the same time since the last scrape of this page: shows bursts that began and ended between two scrapes.";
pub(super) const CHECKOUTS: &str = "Server connections lent to clients.";
pub(super) const TIMEOUTS: &str = "What a limit on time has ended, by kind: query, transaction, idle_in_transaction, client_idle, login, connect, cancel.";
pub(super) const PIN_WAITS: &str =
    "Statements that waited because as many server connections as may be were pinned.";
pub(super) const PIN_TIMEOUTS: &str = "Statements refused after that wait.";
pub(super) const LISTEN_LOSSES: &str =
    "Losses of the server connection that listens for a pool: notifications may have been missed.";
pub(super) const SUBSCRIPTIONS: &str =
    "Channels and patterns that Redis clients have subscribed to, all clients together.";
pub(super) const SUBSCRIPTION_LOSSES: &str = "Losses of the server connection with all subscriptions: messages may have been missed before it was replaced.";
pub(super) const MESSAGES: &str = "Messages given to Redis clients that have subscribed.";
pub(super) const PARKED: &str = "Redis clients that wait for an element (BLPOP and the like) without a server connection of their own.";
pub(super) const ELEMENTS: &str = "Times something came for Redis clients that wait together, by outcome: handed (to the client), returned (put back, because nobody waited for it any more), lost (could not be put back).";
pub(super) const PARKED_LOSSES: &str = "Losses of a server connection that waited on behalf of Redis clients: they wait on over a new one.";
pub(super) const TRANSACTIONS: &str =
    "Transactions finished: for Postgres lone statements, too; for Redis those that EXEC ran.";
pub(super) const REQUESTS: &str = "Queries (Postgres) or commands (Redis) received from clients.";
pub(super) const BYTES: &str = "Bytes carried, by peer (client or server) and direction (received or sent, as tidegate sees it).";
pub(super) const LOGINS: &str = "Clients that logged in.";
pub(super) const LOGINS_LIMITED: &str = "Logins that were slowed down or cut short, by outcome: after too many failed ones from an address delayed (a wrong password, told later), refused (no password was looked at); and crowded_out, to make room for others before they had logged in.";
pub(super) const LOGIN_FAILURES: &str = "Clients turned away at login: wrong password, unknown user or database, malformed or too slow greeting.";
pub(super) const ABORTED: &str =
    "Clients that went away in the middle of a transaction or with replies still owed.";
pub(super) const PINS: &str = "Times a server connection had to stay with one client beyond a transaction, by reason. A pinned connection serves nobody else.";
pub(super) const CONNECT: &str = "Failed attempts to open a server connection, by code: the server's error code, or io, dns, tls, timeout.";
pub(super) const CLOSED: &str = "Server connections closed, by reason.";
pub(super) const NAMESPACE_COMMANDS: &str = "Redis commands of clients of a namespace.";
pub(super) const NAMESPACE_REFUSALS: &str = "Redis commands refused in a namespace, by command and reason: key, channel, pattern (named something outside), command, script, read_only, size.";
pub(super) const NAMESPACE_BYTES: &str = "Bytes carried for clients of a namespace, by direction (received or sent, as tidegate sees it).";
pub(super) const NAMESPACE_CLIENTS: &str = "Clients of a namespace now.";
pub(super) const NAMESPACE_KEYS: &str =
    "Keys of a namespace, as estimated from a sample of the database's keys.";
pub(super) const NAMESPACE_MEMORY: &str =
    "Bytes that a namespace's keys take in Redis, as estimated from a sample.";
pub(super) const PUSH: &str = "Times the metrics were sent by remote write, by outcome: taken, refused, busy (asked to come later), unreachable, timeout.";
pub(super) const BUILD: &str = "Always 1; the label says which version of tidegate runs.";
pub(super) const SERVER_LIMIT_CONFIGURED: &str = "Most connections to the upstream server as it was set. More than tidegate_server_connections_limit while the server gives no more.";
pub(super) const SERVER_REACHABLE: &str = "1, or 0 while the latest attempt to open a connection to the server failed; looked at every 5 seconds.";
pub(super) const SERVER_REFUSALS: &str = "Attempts to open a connection that the server refused because it was full (too many connections for a role or database, max number of clients). Clients wait instead of seeing it.";
pub(super) const CHECKOUT_WAITS: &str = "Checkouts that had to wait: divided by tidegate_checkouts_total the chance to find no connection free.";
pub(super) const REJECTIONS: &str = "Clients told no, by reason: wait_timeout (no connection came free), queue_full, unreachable (the server was away for as long as they may wait), server_full, server_login (the server does not let tidegate in), client_limit, pin_limit, shutdown.";
pub(super) const LEAKS: &str = "Clients that keep a connection without using it for longer than leak_ms: idle in a transaction, or pinned.";
pub(super) const LEAKS_FOUND: &str =
    "Times a client was found to keep a connection without using it for longer than leak_ms.";
pub(super) const PLAN_USED: &str = "Connections to the server, whoever's they are, by what the server limits: role, database, server.";
pub(super) const PLAN_LIMIT: &str =
    "Most connections that the server allows, by what it limits: role, database, server.";
pub(super) const CHECKOUT_WAIT: &str = "Seconds from asking for a server connection to the end of the wait, 0 if one was free, by outcome: ok, timeout, refused (the queue was full), failed (the server), gone (the client left).";
pub(super) const HOLD: &str = "Seconds a client had a server connection, each time, by what it did with it: query, idle_in_transaction (the client was thinking), pinned (kept across transactions, unused).";
pub(super) const BUSY: &str = "Seconds that server connections were lent, all together, by what was done with them. Its rate is how many are lent on average; divided by the limit, the utilisation.";
pub(super) const WAITING: &str = "Seconds that clients waited for a server connection, all together, waits that still last included. Its rate is how many wait on average.";
pub(super) const SATURATED: &str = "Seconds during which a client waited and no connection could be had or opened. Its rate is the part of the time during which the pool was exhausted; a burst between two scrapes shows.";
pub(super) const OLDEST_WAIT: &str = "Seconds that the client at the head of the queue has waited.";
pub(super) const EXHAUSTION: &str = "Seconds until all connections are in use at once if their use goes on growing as it did in the last minutes; +Inf while it doesn't grow.";
pub(super) const NAMESPACE_PINNED: &str =
    "Clients of a namespace that keep a server connection for themselves now, or wait for one.";
pub(super) const NAMESPACE_WAITS: &str = "Times a client of a namespace had to wait for a limit of it: commands (commands_per_second) or pinned (pinned_limit).";
pub(super) const NAMESPACE_FLUSHED: &str =
    "Keys of a namespace removed by FLUSHDB and FLUSHALL of its clients; grows while they run.";
pub(super) const RELOADS: &str = "Times the settings were read again, by outcome: taken, refused (something was wrong, and nothing has changed).";
pub(super) const RELOAD_SUCCESS: &str =
    "When the settings were last taken, at the start or later, in seconds since 1970.";
