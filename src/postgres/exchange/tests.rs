//! The queue of owed replies: what reaches the client, and when all is over.

use super::*;

/// Feeds replies and gives what the client gets of them.
fn replies(exchange: &mut Exchange, tags: &str) -> String {
    let mut seen = String::new();
    for tag in tags.bytes() {
        // Capital I is both EmptyQueryResponse and a status: here Z always reports idle, z a transaction.
        let (tag, status) = match tag {
            b'z' => (b'Z', b'T'),
            _ => (tag, b'I'),
        };
        match exchange.replied(tag, status).expect("fits").0 {
            Verdict::Relay => seen.push(char::from(tag)),
            Verdict::RelayAs(other) => seen.push(char::from(other)),
            Verdict::Swallow => {}
        }
    }
    seen
}

#[test]
fn simple_query() {
    let mut exchange = Exchange::default();
    exchange.sent_query(Owed::Query);
    assert!(!exchange.is_over());
    assert_eq!(replies(&mut exchange, "TDDCNTDCZ"), "TDDCNTDCZ");
    assert!(exchange.is_over());
}

#[test]
fn open_transaction_is_not_over() {
    let mut exchange = Exchange::default();
    exchange.sent_query(Owed::Query);
    replies(&mut exchange, "Cz");
    assert!(!exchange.is_over());
    exchange.sent_query(Owed::Query);
    replies(&mut exchange, "CZ");
    assert!(exchange.is_over());
}

#[test]
fn an_error_takes_the_last_flight_only() {
    let mut exchange = Exchange::default();
    assert!(exchange.is_last_flight());
    exchange.sent_query(Owed::QueryOurs);
    exchange.sent(Owed::ParseUnnamed(None));
    exchange.sent(Owed::Execute);
    assert!(!exchange.is_last_flight());
    replies(&mut exchange, "CZ");
    assert!(exchange.is_last_flight());
    exchange.sent_sync();
    exchange.sent_sync();
    assert!(exchange.is_last_flight());
    exchange.sent_query(Owed::Query);
    assert!(!exchange.is_last_flight());
    replies(&mut exchange, "1CZZ");
    assert!(exchange.is_last_flight());
}

#[test]
fn flush_without_sync_is_not_over() {
    let mut exchange = Exchange::default();
    exchange.sent(Owed::ParseUnnamed(None));
    exchange.sent(Owed::Bind);
    exchange.sent(Owed::Execute);
    assert_eq!(replies(&mut exchange, "12DC"), "12DC");
    assert!(!exchange.is_over(), "the implicit transaction is open until Sync");
    exchange.sent_sync();
    replies(&mut exchange, "Z");
    assert!(exchange.is_over());
}

#[test]
fn error_drops_everything_up_to_sync() {
    let mut exchange = Exchange::default();
    exchange.sent(Owed::ParseUnnamed(None));
    exchange.sent(Owed::Bind);
    exchange.sent_sync();
    exchange.sent(Owed::ParsePlain);
    exchange.sent_sync();
    assert_eq!(exchange.replied(b'E', 0).unwrap().1, Outcome::Lost);
    assert_eq!(exchange.take_lost().len(), 2);
    assert_eq!(replies(&mut exchange, "Z1Z"), "Z1Z");
    assert!(exchange.is_over());
}

#[test]
fn frames_after_an_error_are_ignored_until_sync() {
    let mut exchange = Exchange::default();
    exchange.sent(Owed::ParsePlain);
    replies(&mut exchange, "E");
    exchange.sent(Owed::Bind);
    exchange.sent_query(Owed::Query);
    assert_eq!(exchange.owed(), 0);
    assert!(!exchange.is_over());
    exchange.sent_sync();
    replies(&mut exchange, "Z");
    assert!(exchange.is_over());
}

#[test]
fn ours_is_swallowed() {
    let mut exchange = Exchange::default();
    exchange.sent_query(Owed::QueryOurs);
    exchange.sent(Owed::ParseOurs(1));
    exchange.sent(Owed::Bind);
    exchange.sent(Owed::CloseOurs);
    exchange.sent_sync();
    assert_eq!(replies(&mut exchange, "SNTDCZ123Z"), "2Z");
    assert!(exchange.is_over());
}

#[test]
fn a_spare_sync_answers_for_a_query_that_was_lost() {
    let mut exchange = Exchange::default();
    let send = |exchange: &mut Exchange| {
        exchange.sent_ahead(Owed::CloseOurs);
        exchange.sent_ahead(Owed::ParseOurs(1));
        exchange.sent_query(Owed::Query);
        exchange.sent_spare();
    };
    send(&mut exchange);
    assert_eq!(replies(&mut exchange, "31TDCZZ"), "TDCZ");
    assert!(exchange.is_over());
    send(&mut exchange);
    assert_eq!(replies(&mut exchange, "3EZ"), "EZ");
    assert!(exchange.is_over());
    send(&mut exchange);
    assert_eq!(replies(&mut exchange, "31EZZ"), "EZ");
    assert!(exchange.is_over());
}

#[test]
fn a_notification_reaches_the_client_whatever_is_owed() {
    for owed in [Owed::QueryOurs, Owed::Truth, Owed::Resettle] {
        let mut exchange = Exchange::default();
        exchange.sent_query(owed);
        assert_eq!(replies(&mut exchange, "NATDCZ"), "A");
    }
    let mut exchange = Exchange::default();
    exchange.sent_query(Owed::Resettle);
    assert!(!exchange.owes_client());
    assert_eq!(replies(&mut exchange, "SEZ"), "S");
}

#[test]
fn sync_sent_ahead_of_a_copy_is_ignored_by_the_server() {
    let mut exchange = Exchange::default();
    exchange.sent(Owed::Execute);
    exchange.sent_sync();
    replies(&mut exchange, "G");
    assert!(exchange.copies_in());
    exchange.sent_sync();
    exchange.sent_copy_end();
    exchange.sent_sync();
    assert_eq!(exchange.owed(), 2);
    replies(&mut exchange, "CZ");
    assert!(exchange.is_over());
}

#[test]
fn blind_copy_keeps_its_sync() {
    let mut exchange = Exchange::default();
    exchange.sent(Owed::Execute);
    exchange.sent_copy_end();
    exchange.sent_sync();
    replies(&mut exchange, "GCZ");
    assert!(exchange.is_over());
}

#[test]
fn what_was_sent_behind_a_blind_copy_leaves_its_transaction_open() {
    for extended in [false, true] {
        let mut exchange = Exchange::default();
        if extended {
            exchange.sent(Owed::Execute);
        } else {
            exchange.sent_query(Owed::Query);
        }
        exchange.sent_copy_end();
        if extended {
            exchange.sent_sync();
        }
        exchange.sent(Owed::ParsePlain);
        exchange.sent(Owed::Bind);
        exchange.sent(Owed::Execute);
        replies(&mut exchange, "GCZ12C");
        assert_eq!(exchange.owed(), 0);
        assert!(exchange.wants_sync() && !exchange.is_over(), "its BEGIN may have run");
        exchange.sent_sync();
        replies(&mut exchange, "z");
        assert!(!exchange.is_over());
    }
}

#[test]
fn blind_copy_end_of_a_failed_copy_counts_for_nothing() {
    let mut exchange = Exchange::default();
    exchange.sent_query(Owed::Query);
    exchange.sent_copy_end();
    replies(&mut exchange, "EZ");
    assert!(exchange.is_over());
}

#[test]
fn what_brings_settings_back_ends_a_copy_that_nobody_foresaw() {
    let mut exchange = Exchange::default();
    exchange.sent_query(Owed::Query);
    exchange.sent_query(Owed::Resettle);
    assert_eq!(replies(&mut exchange, "CGEZ12DC33Z"), "CGEZ");
    assert!(exchange.is_over());
    exchange.sent(Owed::Execute);
    exchange.sent_sync();
    exchange.sent_query(Owed::Resettle);
    assert_eq!(replies(&mut exchange, "GEZ"), "GEZ");
    assert!(exchange.is_over());
}

#[test]
fn query_sent_into_a_copy_is_used_up_by_its_error() {
    let mut exchange = Exchange::default();
    exchange.sent_query(Owed::Query);
    exchange.sent_query(Owed::Query);
    replies(&mut exchange, "GEZ");
    assert!(exchange.is_over());
    exchange.sent_query(Owed::Query);
    replies(&mut exchange, "G");
    exchange.sent_query(Owed::Query);
    replies(&mut exchange, "EZ");
    assert!(exchange.is_over());
}

#[test]
fn copy_data_error_in_the_extended_protocol_skips_to_sync() {
    let mut exchange = Exchange::default();
    exchange.sent(Owed::Execute);
    exchange.sent_sync();
    replies(&mut exchange, "GE");
    exchange.sent_copy_end();
    assert!(!exchange.is_over());
    exchange.sent_sync();
    replies(&mut exchange, "Z");
    assert!(exchange.is_over());
}

#[test]
fn what_nobody_asked_for_is_a_desync() {
    for tag in *b"123CDTZnstI" {
        assert_eq!(Exchange::default().replied(tag, b'I'), Err(Desync { tag }));
    }
    let mut exchange = Exchange::default();
    exchange.sent(Owed::Bind);
    assert_eq!(exchange.replied(b'1', 0), Err(Desync { tag: b'1' }));
    assert_eq!(exchange.replied(b'Z', b'I'), Err(Desync { tag: b'Z' }));
}

#[test]
fn async_frames_come_at_any_time() {
    let mut exchange = Exchange::default();
    assert_eq!(replies(&mut exchange, "NSA"), "NSA");
    assert!(exchange.is_over());
}
