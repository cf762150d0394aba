//! Lines and calls.

use proptest::prelude::*;

use super::*;
use crate::redis::pop::Pop;

/// What `BLPOP`, `BRPOP` and `BLMOVE` wait with, in this order.
fn classes() -> [Arc<Class>; 3] {
    ["BLPOP a 0", "BRPOP a 0", "BLMOVE a b LEFT LEFT 0"].map(|line| {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        Arc::new(Pop::parse(&words).unwrap().class)
    })
}

fn keys(names: &str) -> Vec<KeyName> {
    names.split(' ').map(|name| KeyName::from(name.as_bytes())).collect()
}

fn begin(roster: &mut Roster, class: &Arc<Class>) -> Vec<KeyName> {
    roster.begin_call(class, &[])
}

#[test]
fn the_longest_waiter_for_a_key_comes_first() {
    let [left, right, _] = classes();
    let mut roster = Roster::default();
    roster.join(1, &left, &keys("a b"));
    roster.join(2, &left, &keys("b"));
    roster.join(3, &left, &keys("c b"));
    assert_eq!(roster.receiver(&left, b"b"), Some(1));
    assert_eq!(roster.receiver(&left, b"c"), Some(3));
    assert_eq!(roster.receiver(&left, b"d"), None);
    assert_eq!(roster.receiver(&right, b"b"), None);
    roster.leave(1);
    assert_eq!(roster.receiver(&left, b"b"), Some(2));
    assert!(!roster.wants(b"a"));
    assert_eq!((roster.key_count(&left), roster.key_bytes(&left)), (2, 2));
    assert_eq!((roster.first(&left), roster.everybody(&left)), (Some(2), vec![2, 3]));
}

#[test]
fn who_came_first_is_first_however_late_it_joins() {
    let [left, right, _] = classes();
    let mut roster = Roster::default();
    roster.join(2, &left, &keys("a"));
    assert_eq!(begin(&mut roster, &left), keys("a"));
    roster.join(1, &right, &keys("a"));
    assert!(roster.must_end_call(&left), "another one's turn has come");
    assert_eq!(roster.receiver(&left, b"a"), None);
    assert_eq!(roster.keys(&right), [], "not before that call is over");
    roster.end_call(&left);
    assert_eq!((roster.keys(&left), roster.keys(&right)), (vec![], keys("a")));
}

#[test]
fn keys_come_in_the_order_of_those_who_wait() {
    let [left, ..] = classes();
    let mut roster = Roster::default();
    roster.join(1, &left, &keys("b a"));
    roster.join(2, &left, &keys("c a b"));
    assert_eq!(roster.keys(&left), keys("b a c"));
    roster.leave(1);
    assert_eq!(roster.keys(&left), keys("c a b"));
    roster.leave(2);
    assert!(roster.is_empty() && roster.keys(&left).is_empty());
}

#[test]
fn a_call_is_stale_when_it_asks_for_too_little_or_too_much() {
    let [left, ..] = classes();
    let mut roster = Roster::default();
    roster.join(1, &left, &keys("a"));
    begin(&mut roster, &left);
    roster.join(2, &left, &keys("a a"));
    assert!(!roster.must_end_call(&left));
    roster.leave(1);
    assert!(!roster.must_end_call(&left));
    roster.join(3, &left, &keys("a b"));
    assert!(roster.must_end_call(&left));
    roster.end_call(&left);
    begin(&mut roster, &left);
    assert!(!roster.must_end_call(&left));
    roster.leave(3);
    assert!(roster.must_end_call(&left), "nobody waits for b");
    roster.end_call(&left);
    assert!(!roster.must_end_call(&left));
}

#[test]
fn who_comes_while_a_call_asks_for_nothing_ends_it() {
    let [left, ..] = classes();
    let mut roster = Roster::default();
    assert_eq!(begin(&mut roster, &left), []);
    roster.join(1, &left, &keys("a"));
    assert!(roster.must_end_call(&left));
}

#[test]
fn what_cannot_be_asked_for_is_nobody_elses_either() {
    let [left, ..] = classes();
    let mut roster = Roster::default();
    roster.join(1, &left, &keys("a b"));
    let asked = roster.begin_call(&left, &keys("b"));
    assert_eq!((asked, roster.must_end_call(&left)), (keys("a"), false));
    roster.leave(1);
    assert!(roster.must_end_call(&left));
}

#[test]
fn each_class_asks_for_the_keys_in_whose_lines_it_is_first() {
    let [left, right, _] = classes();
    let mut roster = Roster::default();
    roster.join(1, &left, &keys("a b"));
    roster.join(2, &right, &keys("b c"));
    roster.join(3, &left, &keys("c"));
    assert_eq!(begin(&mut roster, &left), keys("a b"));
    assert_eq!(begin(&mut roster, &right), keys("c"));
    assert!(roster.may_receive(1) && roster.may_receive(2) && !roster.may_receive(3));
    // The first one is served.
    roster.end_call(&left);
    roster.leave(1);
    assert!(roster.must_end_call(&right), "b is its, too");
    assert!(!roster.has_keys(&left));
    roster.end_call(&right);
    assert_eq!(begin(&mut roster, &right), keys("b c"));
    roster.leave(2);
    roster.end_call(&right);
    assert_eq!(begin(&mut roster, &left), keys("c"));
}

#[test]
fn a_key_is_nobodys_while_something_goes_back_to_it() {
    let [left, right, _] = classes();
    let mut roster = Roster::default();
    roster.begin_return(&left, &keys("a")[0]);
    roster.join(1, &right, &keys("a"));
    assert!(!roster.has_keys(&right));
    roster.end_return(&right, &keys("a")[0]);
    assert!(!roster.has_keys(&right), "not its own");
    roster.end_return(&left, &keys("a")[0]);
    assert_eq!(begin(&mut roster, &right), keys("a"));
    roster.begin_return(&left, &keys("a")[0]);
    roster.end_return(&left, &keys("a")[0]);
    assert!(!roster.must_end_call(&right), "it asks already");
    roster.leave(1);
    roster.end_call(&right);
    assert!(roster.lines.is_empty() && roster.groups.is_empty());
}

#[test]
fn what_was_moved_is_for_whoever_wanted_that() {
    let [left, _, mover] = classes();
    let mut roster = Roster::default();
    roster.join(1, &left, &keys("a"));
    roster.join(2, &mover, &keys("a"));
    assert_eq!(roster.receiver(&mover, b"a"), Some(2));
    assert_eq!(begin(&mut roster, &mover), []);
}

#[test]
fn a_key_named_twice_is_one_and_leaves_nothing_behind() {
    let [left, ..] = classes();
    let mut roster = Roster::default();
    roster.join(1, &left, &keys("a b a"));
    assert_eq!((roster.key_count(&left), begin(&mut roster, &left)), (2, keys("a b")));
    roster.end_call(&left);
    roster.leave(1);
    assert!(roster.lines.is_empty() && roster.groups.is_empty());
}

#[test]
fn those_concerned_are_told() {
    let [left, right, _] = classes();
    let mut roster = Roster::default();
    let told = |roster: &mut Roster, wanted: &[&Arc<Class>]| {
        assert_eq!(roster.take_changed().iter().collect::<Vec<_>>(), wanted);
    };
    roster.join(1, &left, &keys("a"));
    told(&mut roster, &[&left]);
    roster.join(2, &right, &keys("a"));
    told(&mut roster, &[]);
    begin(&mut roster, &left);
    told(&mut roster, &[]);
    roster.leave(1);
    told(&mut roster, &[&left]);
    roster.end_call(&left);
    told(&mut roster, &[&right]);
}

#[derive(Debug, Clone)]
enum Deed {
    Join { ticket: Ticket, class: usize, keys: Vec<usize> },
    Leave(Ticket),
    Begin(usize),
    End(usize),
    BeginReturn(usize, usize),
    EndReturn(usize, usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    let join = (0..40_u64, 0..3_usize, prop::collection::vec(0..4_usize, 1..4));
    prop_oneof![
        4 => join.prop_map(|(ticket, class, keys)| Deed::Join { ticket, class, keys }),
        2 => (0..40_u64).prop_map(Deed::Leave),
        3 => (0..3_usize).prop_map(Deed::Begin),
        3 => (0..3_usize).prop_map(Deed::End),
        1 => (0..3_usize, 0..4_usize).prop_map(|(class, key)| Deed::BeginReturn(class, key)),
        1 => (0..3_usize, 0..4_usize).prop_map(|(class, key)| Deed::EndReturn(class, key)),
    ]
}

fn apply(roster: &mut Roster, deed: Deed) {
    let (classes, names) = (classes(), keys("a b c d"));
    match deed {
        Deed::Join { ticket, .. } if roster.class_of(ticket).is_some() => {}
        Deed::Join { ticket, class, keys } => {
            let keys: Vec<KeyName> = keys.iter().map(|at| KeyName::clone(&names[*at])).collect();
            roster.join(ticket, &classes[class], &keys);
        }
        Deed::Leave(ticket) => roster.leave(ticket),
        Deed::Begin(class) => {
            roster.end_call(&classes[class]);
            begin(roster, &classes[class]);
        }
        Deed::End(class) => roster.end_call(&classes[class]),
        Deed::BeginReturn(class, key) => roster.begin_return(&classes[class], &names[key]),
        Deed::EndReturn(class, key) => roster.end_return(&classes[class], &names[key]),
    }
}

/// Counted anew from who waits for what.
fn check(roster: &Roster) {
    for (class, group) in &roster.groups {
        let leads = |key: &KeyName| {
            let all = roster.groups.iter().flat_map(|(class, group)| {
                group.waiters.iter().map(move |(ticket, keys)| (ticket, class, keys))
            });
            let first = all.filter(|(_, _, keys)| keys.contains(key)).min_by_key(|one| one.0);
            first.is_some_and(|(_, first, _)| first == class)
        };
        for key in &keys("a b c d") {
            assert_eq!(group.leads.contains(key), leads(key), "{class:?}");
            let held = roster.lines.get(key).map_or(&Held::Free, |line| &line.held);
            match &group.call {
                Call::None => assert_ne!(*held, Held::Called(Arc::clone(class))),
                // It asks for all that it may ask for.
                Call::Running(_) => {
                    assert!(!leads(key) || *held != Held::Free, "{class:?} {key:?}");
                    assert!(leads(key) || *held != Held::Called(Arc::clone(class)));
                }
                Call::Stale(_) => {}
            }
        }
    }
    // Whoever holds a key has a call; nothing is kept of what is over.
    for line in roster.lines.values() {
        assert!(!line.is_over());
        if let Held::Called(class) = &line.held {
            assert!(!matches!(roster.groups[class].call, Call::None));
        }
    }
}

proptest! {
    #[test]
    fn each_key_is_asked_for_by_the_class_of_the_first_in_its_line(
        deeds in prop::collection::vec(deed(), 1..60),
    ) {
        let mut roster = Roster::default();
        for deed in deeds {
            apply(&mut roster, deed);
            check(&roster);
        }
    }
}
