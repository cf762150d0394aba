//! Screens of fixed statuses, as a terminal would show them.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::status::{LaneStatus, QueueStatus, Reach, ServerCounts, Verdict};

const NOW_MS: u64 = 1_800_000_000_000;

fn leak(number: u64) -> Holder {
    Holder {
        client: number,
        application_name: format!("web.{number}"),
        address: format!("127.0.0.1:{}", 40_000 + number),
        server_pid: 2_700 + i64::try_from(number).unwrap(),
        phase: "idle_in_transaction".to_owned(),
        phase_seconds: 45.0,
        held_seconds: 46.0,
        statement: "select * from carts where id = ? for update".to_owned(),
        leaks: true,
        ..Holder::default()
    }
}

fn exhausted() -> PoolStatus {
    let mut pool = PoolStatus {
        protocol: "postgres".to_owned(),
        name: "DATABASE_URL".to_owned(),
        host: "db".to_owned(),
        port: 5432,
        user: "app".to_owned(),
        database: "app".to_owned(),
        mode: "transaction".to_owned(),
        limit: 5,
        limit_configured: 5,
        servers: ServerCounts { idle_in_transaction: 5, ..ServerCounts::default() },
        queue: QueueStatus {
            length: 12,
            limit: 100,
            oldest_wait_ms: 3_240.0,
            wait_limit_ms: 10_000,
        },
        reach: Reach::Reachable,
        holders: (1..=5).map(leak).collect(),
        history: (0..180)
            .map(|number| Sample {
                at_ms: NOW_MS - (179 - number) * 5_000,
                in_use: if number < 90 { 2 } else { 5 },
                limit: 5,
                queue_max: if number < 90 { 0 } else { 12 },
                saturated: if number < 90 { 0.0 } else { 1.0 },
            })
            .collect(),
        ..PoolStatus::default()
    };
    pool.verdict = Verdict::of(&pool, NOW_MS);
    pool
}

fn redis() -> PoolStatus {
    let mut pool = PoolStatus {
        protocol: "redis".to_owned(),
        name: "REDIS_URL".to_owned(),
        mode: "lanes".to_owned(),
        limit: 4,
        limit_configured: 4,
        servers: ServerCounts { idle: 1, ..ServerCounts::default() },
        lanes: vec![LaneStatus { name: "lane 1".to_owned(), batches: 2, pending_bytes: 99 }],
        ..PoolStatus::default()
    };
    pool.verdict = Verdict::of(&pool, NOW_MS);
    pool
}

fn status() -> Status {
    let event = Event {
        at_ms: NOW_MS - 20_000,
        count: 3,
        pool: "DATABASE_URL".to_owned(),
        kind: "leak".to_owned(),
        message: "client 1 keeps a connection".to_owned(),
        hint: "Commit.".to_owned(),
        ..Event::default()
    };
    Status {
        version: "1.2.3".to_owned(),
        at_ms: NOW_MS,
        uptime_seconds: 3_725.0,
        pools: vec![exhausted(), redis()],
        events: vec![event],
        ..Status::default()
    }
}

fn view() -> View {
    let mut view = View::new("http://127.0.0.1:9127".to_owned());
    view.hear(Ok(status()), Instant::now());
    view
}

/// The screen's lines, without what is blank at their ends.
fn screen(view: &mut View, width: u16, height: u16, now: Instant) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view, now)).unwrap();
    let buffer = terminal.backend().buffer();
    let cells: Vec<&str> = buffer.content().iter().map(ratatui::buffer::Cell::symbol).collect();
    cells.chunks(usize::from(width)).map(|row| row.concat().trim_end().to_owned()).collect()
}

#[test]
fn eighty_by_twenty_four_show_who_holds_what() {
    let lines = screen(&mut view(), 80, 24, Instant::now());
    let wanted = [
        "tidegate 1.2.3 at http://127.0.0.1:9127, up for 1 h 2 min  pool 1 of 2",
        "DATABASE_URL postgres, transaction: db:5432, database app as app",
        "Exhausted: 5 of 5 in use, 12 clients wait, the first for 3.2 s; since 7 min 30 s",
        "ago",
        "web.1 (client 1) has done nothing inside a transaction for 45 s, and 4 more do",
        "the like: have it commit or roll back before it does anything else, or let",
        "postgres.idle_transaction_timeout_ms end it.",
    ];
    assert_eq!(lines[..wanted.len()], wanted, "{lines:#?}");
    let bar = format!("[{}]", "▒".repeat(78));
    assert_eq!(lines[7], bar);
    assert_eq!(lines[8], "5 idle in transaction | clients: 0 with one, 0 waiting, 0 idle");
    assert!(lines[9].starts_with("15 min /5   ▃") && lines[9].ends_with('█'), "{lines:#?}");
    assert!(lines[10].starts_with("waiting /12  ") && lines[10].ends_with('█'), "{lines:#?}");
    assert_eq!(lines[11], "limit 5 | queue 12 of 100");
    assert!(lines[12].starts_with("HELD BY 1-5/5"), "{lines:#?}");
    let first = "web.1            1      2701    LEAK idle in trans. 45 s       select * from car";
    assert_eq!(lines[13], first);
    assert!(lines[17].starts_with("web.5"), "{lines:#?}");
    assert_eq!(lines[20], "20 s ago leak ×3: client 1 keeps a connection Commit.", "{lines:#?}");
    assert_eq!(lines[23], KEYS);
}

#[test]
fn keys_turn_to_other_pools_and_scroll_no_further_than_there_is_something() {
    let mut view = view();
    view.scroll_down(usize::MAX);
    let lines = screen(&mut view, 80, 14, Instant::now()).join("\n");
    assert!(
        lines.contains("-5/5") && !lines.contains("web.1  ") && lines.contains("web.5"),
        "{lines}"
    );
    view.scroll_up(1);
    let lines = screen(&mut view, 80, 14, Instant::now()).join("\n");
    assert!(!lines.contains("web.5"), "{lines}");
    view.next_pool();
    let lines = screen(&mut view, 80, 24, Instant::now()).join("\n");
    assert!(lines.contains("pool 2 of 2") && lines.contains("lane 1: 2 runs wait"), "{lines}");
    assert!(lines.contains("Well: 0 of 4 in use, nobody waits"), "{lines}");
    view.previous_pool();
    assert!(screen(&mut view, 80, 24, Instant::now())[0].ends_with("pool 1 of 2"));
    view.hear(Ok(Status::default()), Instant::now());
    assert!(screen(&mut view, 80, 24, Instant::now()).join("\n").contains("There are no pools."));
}

#[test]
fn a_port_that_is_gone_is_said_and_what_was_known_stays() {
    let mut view = View::new("http://127.0.0.1:9127".to_owned());
    let now = Instant::now();
    assert_eq!(screen(&mut view, 80, 24, now)[1], "Asking.");
    let late = || Err(NoStatus::Late { url: "http://127.0.0.1:9127".to_owned() });
    view.hear(late(), now);
    let lines = screen(&mut view, 80, 24, now).join("\n");
    assert!(lines.contains("has not answered within 3 s") && !lines.contains("old"), "{lines}");
    view.hear(Ok(status()), now);
    assert!(!screen(&mut view, 80, 24, now).join("\n").contains("answered"));
    let later = now + Duration::from_secs(20);
    assert!(screen(&mut view, 80, 24, later)[1].contains("What follows is 20 s old."));
    view.hear(late(), later);
    let lines = screen(&mut view, 80, 24, later).join("\n");
    assert!(lines.contains("What follows is 20 s old.") && lines.contains("web.1"), "{lines}");
}

#[test]
fn any_size_will_do() {
    let sizes = [1, 2, 12, 30, 80, 130]
        .into_iter()
        .flat_map(|width| [1, 2, 3, 5, 8, 13, 18, 20, 26, 45].map(|height| (width, height)));
    for (width, height) in sizes {
        let mut view = view();
        screen(&mut view, width, height, Instant::now());
        view.next_pool();
        view.hear(Err(NoStatus::Late { url: "x".repeat(300) }), Instant::now());
        screen(&mut view, width, height, Instant::now());
    }
    let wide = screen(&mut view(), 160, 50, Instant::now()).join("\n");
    assert!(wide.contains("127.0.0.1:40001") && wide.contains("for update"), "{wide}");
    let narrow = screen(&mut view(), 30, 10, Instant::now()).join("\n");
    assert!(narrow.contains("Exhausted: 5 of 5 in use"), "{narrow}");
}
