//! Several variables: which share a listener, and which get one of their own.

use super::*;

/// The listeners' ports with the names behind each, and each variable's listener.
fn layout(variables: &[(&str, &str)]) -> (Vec<String>, Vec<usize>) {
    let loaded = from_environment(variables).unwrap();
    let postgres = loaded.settings.postgres.iter().flat_map(|side| &side.listeners).map(|known| {
        let names: Vec<&str> = known.upstreams.iter().map(|up| up.name.as_str()).collect();
        format!("{} {}", known.listen.port(), names.join(" "))
    });
    let redis = loaded.settings.redis.iter().flat_map(|side| &side.listeners);
    let redis = redis.map(|known| format!("{} {}", known.listen.port(), known.upstream.name));
    let indices = loaded.variables.iter().map(|variable| variable.listener).collect();
    (postgres.chain(redis).collect(), indices)
}

#[test]
fn one_postgres_listener_serves_all_that_cannot_be_confused() {
    let names = ("TIDEGATE_POSTGRES_URLS", "A B");
    for (a, b, listeners, indices) in [
        ("postgres://u:p@h/d", "postgres://v:p@h/d", &["6432 A B"][..], [0, 0]),
        ("postgres://u:p@h/d", "postgres://u:p@other/e", &["6432 A B"], [0, 0]),
        ("postgres://u:p@h/d", "postgres://u:p@h/d", &["6432 A"], [0, 0]),
        ("postgres://u:p@h/d", "postgres://u:p@other/d", &["6432 A", "6433 B"], [0, 1]),
        ("postgres://u:p@h/d", "postgres://u:q@h/d", &["6432 A", "6433 B"], [0, 1]),
    ] {
        let expected = (listeners.iter().map(|&text| text.to_owned()).collect(), indices.to_vec());
        assert_eq!(layout(&[names, ("A", a), ("B", b)]), expected, "{a} {b}");
    }
}

#[test]
fn a_follower_has_a_pool_of_its_own() {
    let loaded = from_environment(&[
        ("TIDEGATE_POSTGRES_READ_ONLY_URLS", "A B C"),
        DB,
        ("A", "postgres://u:p@h/d"),
        ("B", "postgres://u:p@h,i/d"),
        ("C", "postgres://u:p@h,i/d?target_session_attrs=any"),
    ])
    .unwrap();
    let listeners = loaded.settings.postgres.as_ref().unwrap().listeners.iter();
    let upstreams: Vec<_> = listeners.flat_map(|listener| &listener.upstreams).collect();
    let meaning = |name: &str| {
        let upstream = upstreams.iter().find(|upstream| upstream.name == name).unwrap();
        (upstream.access, upstream.hosts.target)
    };
    assert_eq!(meaning("DATABASE_URL"), (Access::Write, TargetSession::Any));
    assert_eq!(meaning("A"), (Access::Read, TargetSession::Any), "there is nothing to choose from");
    assert_eq!(meaning("B"), (Access::Read, TargetSession::PreferStandby));
    assert_eq!(meaning("C"), (Access::Read, TargetSession::Any));
    let names: Vec<_> = loaded.variables.iter().map(|variable| &*variable.name).collect();
    assert_eq!(names, ["DATABASE_URL", "A", "B", "C"]);
    let told = describe(&loaded);
    assert!(
        told.contains("B h:5432,i:5432, user u") && told.contains("a standby if there is one"),
        "{told}"
    );
    assert!(told.contains("only read"), "{told}");
}

#[test]
fn each_redis_server_has_a_listener() {
    let names = ("TIDEGATE_REDIS_URLS", "A B");
    for (a, b, listeners, indices) in [
        ("redis://h", "redis://h:6379/0", &["6380 A"][..], [0, 0]),
        ("redis://h", "redis://h/1", &["6380 A", "6381 B"], [0, 1]),
        ("redis://h", "rediss://h", &["6380 A", "6381 B"], [0, 1]),
        ("redis://h", "redis://other", &["6380 A", "6381 B"], [0, 1]),
    ] {
        let expected = (listeners.iter().map(|&text| text.to_owned()).collect(), indices.to_vec());
        assert_eq!(layout(&[names, ("A", a), ("B", b)]), expected, "{a} {b}");
    }
}

#[test]
fn any_keeps_servers_apart() {
    let variables = [
        ("TIDEGATE_POSTGRES_URLS", "A B C"),
        ("TIDEGATE_POSTGRES_ANY", "1"),
        ("TIDEGATE_POSTGRES_AUTH", "trust"),
        ("A", "postgres://u@h/d"),
        ("B", "postgres://v@other/e"),
        ("C", "postgres://w@h/f"),
    ];
    let listeners = vec!["6432 A C".to_owned(), "6433 B".to_owned()];
    assert_eq!(layout(&variables), (listeners, vec![0, 1, 0]));
}

#[test]
fn only_the_first_listener_s_port_is_somebody_s_wish() {
    let loaded = from_environment(&[
        ("TIDEGATE_POSTGRES_URLS", "A B"),
        ("TIDEGATE_POSTGRES_LISTEN", "localhost:7000"),
        ("A", "postgres://u@h/d"),
        ("B", "postgres://u@other/d"),
    ])
    .unwrap();
    let listeners = loaded.settings.postgres.unwrap().listeners;
    let shape: Vec<_> = listeners.iter().map(|l| (l.listen.to_string(), l.explicit)).collect();
    assert_eq!(shape, [("127.0.0.1:7000".to_owned(), true), ("127.0.0.1:7001".to_owned(), false)]);
}

#[test]
fn nothing_listens_beyond_the_loopback_unless_it_is_told() {
    let names = [("TIDEGATE_POSTGRES_URLS", "A B"), ("A", "postgres://u:p@h/d")];
    let settings = from_environment(&[&names[..], &[("B", "postgres://u:p@g/d"), REDIS]].concat());
    let settings = settings.unwrap().settings;
    let postgres = settings.postgres.iter().flat_map(|side| &side.listeners);
    let redis = settings.redis.iter().flat_map(|side| &side.listeners);
    let addresses = postgres.map(|known| known.listen).chain(redis.map(|known| known.listen));
    let addresses: Vec<_> = addresses.chain([settings.admin.listen]).collect();
    assert_eq!(addresses.len(), 4);
    assert!(addresses.iter().all(|address| address.ip().is_loopback()), "{addresses:?}");
}

/// Of who comes from elsewhere a password is asked.
#[test]
fn who_listens_elsewhere_asks_for_a_password() {
    let open = [
        ("TIDEGATE_POSTGRES_LISTEN", DB, ("DATABASE_URL", "postgres://u@h/d")),
        ("TIDEGATE_REDIS_LISTEN", REDIS, ("REDIS_URL", "redis://h")),
    ];
    for (listen, closed, open) in open {
        let auth = (&*listen.replace("LISTEN", "AUTH"), "trust");
        for (address, refused) in [
            ("127.0.0.1:7000", false),
            ("127.9.9.9:7000", false),
            ("[::1]:7000", false),
            ("0.0.0.0:7000", true),
            ("[::]:7000", true),
            ("10.0.0.7:7000", true),
            ("[::ffff:10.0.0.7]:7000", true),
            ("[fe80::1]:7000", true),
        ] {
            let address = (listen, address);
            assert!(from_environment(&[address, closed]).is_ok(), "{address:?}");
            let trusting = from_environment(&[address, closed, auth]);
            assert_eq!(trusting.is_err(), refused, "{address:?} {auth:?}");
            let without = from_environment(&[address, open]);
            assert_eq!(without.is_err(), refused, "{address:?} {open:?}");
            for error in [trusting.err(), without.err()].into_iter().flatten() {
                let error = error.to_string();
                assert!(error.contains("127.0.0.1") && error.contains("password"), "{error}");
            }
        }
    }
}

#[test]
fn listeners_never_share_an_address() {
    let error = from_environment(&[
        ("TIDEGATE_POSTGRES_URLS", "A B"),
        ("TIDEGATE_REDIS_LISTEN", "127.0.0.1:6433"),
        ("A", "postgres://u@h/d"),
        ("B", "postgres://u@other/d"),
        REDIS,
    ]);
    assert!(error.unwrap_err().to_string().contains("127.0.0.1:6433"));
}

#[test]
fn our_own_variable_names_the_upstream() {
    let local = ("DATABASE_URL", "postgres://u:p@127.0.0.1:6432/d");
    let listen = &crate::net::Address::Tcp("127.0.0.1:6432".parse().unwrap());
    let looping = from_environment(&[local]).unwrap();
    assert!(looping.variables[0].leads_to(listen));
    let real = ("TIDEGATE_DATABASE_URL", "postgres://u:p@db.example.com/d");
    let loaded = from_environment(&[local, real]).unwrap();
    assert_eq!(loaded.variables[0].name, "DATABASE_URL");
    assert!(!loaded.variables[0].leads_to(listen));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let error = from_environment(&[local, ("TIDEGATE_DATABASE_URL", "x")]).unwrap_err();
    assert!(error.to_string().starts_with("TIDEGATE_DATABASE_URL: "), "{error}");
}
