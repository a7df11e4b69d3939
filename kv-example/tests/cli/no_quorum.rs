//! A node that has lost the others: what its users are told.

use crate::support::{Running, free_ports, run, stderr, wait_for};

/// With the defaults of both sides the node gives up first, so that the user learns that nothing was done.
#[test]
fn a_write_without_a_quorum_is_known_not_to_be_done() {
    let base = free_ports(4);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").display().to_string();
    let peers = format!("1=127.0.0.1:{},2=127.0.0.1:{},3=127.0.0.1:{}", base + 1, base + 2, base + 3);
    let client = format!("127.0.0.1:{base}");
    let args = ["server", "--id", "1", "--data", &data, "--peers", &peers, "--listen-client", &client];
    let server = Running::start(&dir.path().join("log"), &args);
    wait_for("the node", || server.log().contains("serving clients").then_some(()));
    let output = run(&["put", "k", "v", "--endpoints", &client]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("not done, and safe to try again"), "{}", stderr(&output));
}
