//! The programs that come with Postgres, through the pool: they say the same as directly.

use std::io::{Read, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::postgres::{Postgres, Version};
use crate::support::tidegate::Tidegate;

/// Enough for a dump by two jobs, which need a third at the same time.
const SERVER_CONNECTIONS: usize = 4;

/// What psql has commands of its own for; `\bind` and the like only where it knows them.
const SCRIPT: &str = r"
create table t (id int primary key, name text);
\copy t from 'lines.tsv'
select count(*) from t;
\copy (select * from t where id % 500 = 0 order by id) to stdout with csv header
\copy t to 'out.tsv'
\copy t from 'wrong.tsv'
select id, name as n, null::numeric(5, 2) as m from t \gdesc
select 'select ' || n from generate_series(1, 3) n \gexec
select 'kept' as word, 7 as number \gset
select :'word', :number;
select 1 as a \; select 2 as b \; select 3 as c;
\set FETCH_COUNT 100
select sum(length(name)) from t;
select id from t where id < 250 order by id;
\unset FETCH_COUNT
\set AUTOCOMMIT off
\set ON_ERROR_ROLLBACK on
insert into t values (100000, 'in a transaction');
insert into t values (100000, 'twice');
\errverbose
commit;
\set AUTOCOMMIT on
select count(*) from t;
\d t
\dt
\dn
\set QUIET off
set search_path = pg_catalog;
show search_path;
reset search_path;
prepare twice as select $1::int * 2;
execute twice(21);
deallocate twice;
create temp table gone as select 1 as n;
select * from gone;
drop table gone;
listen news;
notify news, 'hello';
unlisten news;
begin;
\lo_import 'lines.tsv'
\lo_export :LASTOID 'object.tsv'
\lo_unlink :LASTOID
commit;
create sequence s;
select 6 / (3 - nextval('s')) \watch 0.01
select 'behind the watch';
";

const NEWER_SCRIPT: &str = r"
select $1::int + $2::int \bind 40 2 \g
select $1::text \bind 'x' \gdesc
";

const SCHEMA: &str = r#"
create schema "Odd name";
create type mood as enum ('well', 'ill');
create table "Odd name".people (id serial primary key, name text not null, mood mood default 'well', at timestamptz);
insert into "Odd name".people (name, at)
    select 'name ' || n, '2026-01-01 00:00+00'::timestamptz + n * interval '1 day' from generate_series(1, 5000) n;
create index on "Odd name".people (name);
create view ill as select * from "Odd name".people where mood = 'ill';
create function twice(n int) returns int language plpgsql as $$ begin return n * 2; end $$;
create table doubled (n int, m int generated always as (n * 2) stored, check (n > 0));
insert into doubled select generate_series(1, 1000);
select lo_from_bytea(4711, '\xdeadbeef');
comment on table doubled is 'it''s twice as much';
"#;

/// Takes away all that the scripts make.
const NOTHING: &str = "drop owned by current_user cascade";

#[test]
fn psql() {
    staged(|stage| {
        let said = [&stage.direct, &stage.pooled].map(|url| {
            let here = TempDir::new().unwrap();
            let lines: String = (0..3_000).map(|n| format!("{n}\tname {n}\n")).collect();
            std::fs::write(here.path().join("lines.tsv"), &lines).unwrap();
            std::fs::write(here.path().join("wrong.tsv"), "not a number\tx\n").unwrap();
            stage.psql(&stage.direct, here.path(), NOTHING);
            let said = stage.psql(url, here.path(), &script());
            for file in ["out.tsv", "object.tsv"] {
                let written = std::fs::read_to_string(here.path().join(file)).unwrap();
                assert_eq!(written, lines, "{file}: {said}");
            }
            neutral(&said)
        });
        assert!(said[0].contains("behind the watch"), "{}", said[0]);
        same(&said[1], &said[0]);
    });
}

fn script() -> String {
    let version = output(Command::new("psql").arg("--version"), "");
    let major = version.split([' ', '.']).find_map(|word| word.parse::<u32>().ok());
    let newer = major.is_some_and(|major| major >= 16);
    format!("{SCRIPT}{}", if newer { NEWER_SCRIPT } else { "" })
}

/// Without what is never the same: the numbers of large objects and of processes.
fn neutral(said: &str) -> String {
    let numbered = |line: &str| line.starts_with("lo_") || line.contains("PID");
    said.lines()
        .map(|line| match line {
            line if numbered(line) => line.replace(|letter: char| letter.is_ascii_digit(), ""),
            line => line.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn pg_dump_and_what_restores_it() {
    staged(|stage| {
        let here = TempDir::new().unwrap();
        let restored = |restore: &dyn Fn() -> String| {
            stage.psql(&stage.direct, here.path(), NOTHING);
            restore();
            stage.dump(&stage.direct, &[])
        };
        let whole = restored(&|| stage.psql(&stage.direct, here.path(), SCHEMA));
        assert!(whole.contains("name 4999") && whole.contains("deadbeef"), "{whole}");
        let dumped = stage.dump(&stage.pooled, &[]);
        same(&dumped, &whole);
        let inserts = ["--inserts"];
        same(&stage.dump(&stage.pooled, &inserts), &stage.dump(&stage.direct, &inserts));
        // Two jobs read one snapshot.
        let directory = here.path().join("dump");
        let directory = directory.to_str().unwrap();
        stage.dump(&stage.pooled, &["--format=directory", "--jobs=2", "--file", directory]);
        same(&restored(&|| stage.psql(&stage.pooled, here.path(), &dumped)), &whole);
        for jobs in ["--jobs=1", "--jobs=2"] {
            let arguments = ["--exit-on-error", jobs, "--dbname", &stage.pooled, directory];
            same(&restored(&|| output(Command::new("pg_restore").args(arguments), "")), &whole);
        }
    });
}

/// Shows the first line that differs.
fn same(pooled: &str, direct: &str) {
    let differs = pooled.lines().zip(direct.lines()).find(|(pooled, direct)| pooled != direct);
    assert_eq!(differs, None);
    assert_eq!(pooled.len(), direct.len());
}

/// Where a server with Debian's own programs is.
struct Stage {
    direct: String,
    pooled: String,
}

/// Runs `work` while another client moves the server connections about.
fn staged(work: impl FnOnce(&Stage)) {
    let server = Postgres::of(Version::Installed);
    let gate = Tidegate::before(&server, SERVER_CONNECTIONS);
    let pooled =
        server.url().replace(&server.port().to_string(), &gate.postgres_port().to_string());
    let stage = Stage { direct: server.url(), pooled };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut other = gate.client();
            while !stop.load(Ordering::Relaxed) {
                other.query("begin; set work_mem = '5MB'").expect_no_error();
                std::thread::sleep(Duration::from_millis(2));
                other.query("commit").expect_no_error();
            }
        });
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&stage)));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    });
    assert!(server.sessions_of("app") <= SERVER_CONNECTIONS);
}

impl Stage {
    fn psql(&self, url: &str, here: &Path, script: &str) -> String {
        let mut psql = Command::new("psql");
        psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", url]).current_dir(here);
        output(&mut psql, script)
    }

    /// Without the word by which each dump is told from others.
    fn dump(&self, url: &str, arguments: &[&str]) -> String {
        let said = output(Command::new("pg_dump").arg("--dbname").arg(url).args(arguments), "");
        let by_word =
            |line: &&str| line.starts_with("\\restrict") || line.starts_with("\\unrestrict");
        said.lines().filter(|line| !by_word(line)).map(|line| format!("{line}\n")).collect()
    }
}

/// What a program says, on either stream, when it is given `input`.
fn output(command: &mut Command, input: &str) -> String {
    let mut file = tempfile::tempfile().expect("a temp file");
    file.write_all(input.as_bytes()).expect("room");
    file.rewind().expect("a file");
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let streams = (writer.try_clone().expect("a pipe"), writer);
    command.stdin(file).stdout(streams.0).stderr(streams.1);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // The pipe ends when the last writer is gone, and the command holds two.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut said = String::new();
    reader.read_to_string(&mut said).expect("text");
    let status = child.wait().expect("a child");
    assert!(status.success(), "{command:?}: {status}\n{said}");
    said
}
