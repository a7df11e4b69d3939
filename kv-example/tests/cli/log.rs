//! `log dump` of a log in a redb database: that of files is in `config.rs`.

use crate::support::{Alone, assert_refused, run, stderr, stdout};

#[test]
fn a_log_in_a_database_is_dumped_while_no_server_runs_on_it() {
    let node = Alone::new();
    let (mut server, data) = (node.start(&["--store", "redb"]), &*node.data);
    for n in 0..5 {
        node.put(&format!("k{n}"), &format!("{n}-{}", "needle".repeat(20)));
    }
    let running = run(&["log", "dump", data]);
    assert_refused(&running, &[data, &format!("in use by process {}", server.child.id()), "stop it first"]);
    assert!(!stderr(&running).contains("there are logs in"), "{}", stderr(&running));
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.code(), Some(0), "{}", server.log());

    let sound = run(&["log", "dump", data]);
    let text = stdout(&sound);
    assert!(sound.status.success(), "{text}{}", stderr(&sound));
    for part in [
        &*format!("log {data}: node 1 of cluster"),
        "database log.redb, ",
        "closed in good order",
        "; entry 2@",
        "\nsound: ",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }

    let file = node.dir.path().join("data/log.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    let places: Vec<_> = (0..bytes.len() - 8).filter(|at| &bytes[*at..*at + 8] == b"3-needle").collect();
    assert!(!places.is_empty(), "the value is not in the file");
    places.iter().for_each(|at| bytes[*at] = b'4');
    std::fs::write(&file, &bytes).unwrap();
    let damaged = run(&["log", "dump", data]);
    let text = stdout(&damaged);
    assert_eq!(damaged.status.code(), Some(1), "{text}");
    assert!(
        text.contains("DAMAGED: the checksum of the entry does not match") && text.contains("\nDAMAGED: "),
        "{text}"
    );
    assert!(text.lines().any(|line| line.starts_with("  entry ")), "{text}");
    assert!(stderr(&damaged).contains("is damaged") && !stderr(&damaged).contains("panicked"), "{}", stderr(&damaged));
    assert!(std::fs::read(&file).unwrap() == bytes, "the file was changed");
}
