//! Certificates that expire, as a server and its clients meet them.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, SystemTime};

use crate::limits_support::{Abuser, Node, PUT, within};
use crate::support::{run, stderr, wait_for};
use kv_example::api::etcdserverpb::PutRequest;
use raftkv::NodeId;
use raftkv::transport_kit::Tls;
use raftkv::transport_kit::tls::TlsFiles;
use raftkv::transport_kit::tls::dev::{DevCa, Subject, Validity};
use tonic::Code;

/// A node whose clients speak TLS, and the directory of its certificates.
async fn protected() -> (Node, tempfile::TempDir) {
    let certs = tempfile::tempdir().unwrap();
    let made = run(&["certs", "--out", &certs.path().display().to_string(), "--nodes", "1"]);
    assert!(made.status.success(), "{}", stderr(&made));
    (Node::protected(&[], certs.path()).await, certs)
}

/// Puts another certificate of the directory's CA in its place, which is good until then.
fn issue(certs: &Path, name: &str, subject: &Subject, until: SystemTime) {
    let read = |name: &str| fs::read_to_string(certs.join(name)).unwrap();
    let ca = DevCa::from_pem(&read("ca.crt"), &read("ca.key")).unwrap();
    let from = until.min(SystemTime::now()) - Duration::from_secs(3600);
    let issued = ca.issue(subject, Validity { from, until }).unwrap();
    for (kind, text) in [("key", &issued.key), ("crt", &issued.certificate)] {
        let draft = certs.join("draft");
        fs::write(&draft, text).unwrap();
        fs::rename(draft, certs.join(format!("{name}.{kind}"))).unwrap();
    }
}

fn somebody() -> Subject {
    Subject { name: "somebody".into(), ..Subject::default() }
}

/// A command of somebody who has this certificate of the directory.
fn run_as(node: &Node, certs: &Path, name: &str, words: &[&str]) -> Output {
    let file = |name: &str| certs.join(name).display().to_string();
    let endpoint = format!("https://{}", node.clients());
    let (ca, cert, key) = (file("ca.crt"), file(&format!("{name}.crt")), file(&format!("{name}.key")));
    run(&[words, &["--endpoints", &endpoint, "--cacert", &ca, "--cert", &cert, "--key", &key]].concat())
}

/// Both sides are told; the same person with a certificate that is good gets through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_certificate_has_expired_is_refused() {
    let (node, certs) = protected().await;
    let (certs, hour) = (certs.path(), Duration::from_secs(3600));
    issue(certs, "late", &somebody(), SystemTime::now() - hour);
    let refused = run_as(&node, certs, "late", &["put", "k", "late", "--timeout", "2"]);
    let words = "it does not accept this side's certificate: it has expired";
    assert!(refused.status.code() == Some(1) && stderr(&refused).contains(words), "{refused:?}");
    let log = node.log();
    let told = |line: &str| {
        ["WARN", "refused a client", "127.0.0.1", "its certificate is not accepted: it has expired"]
            .iter()
            .all(|word| line.contains(word))
    };
    assert!(log.lines().any(told), "{log}");
    node.others_go_on().await;
    issue(certs, "late", &somebody(), SystemTime::now() + hour);
    let got = run_as(&node, certs, "late", &["get", "k"]);
    assert!(got.status.success() && !crate::support::stdout(&got).contains("late"), "{got:?}");
}

/// The node runs on with a certificate that nobody has renewed in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_certificate_has_expired_is_refused() {
    let (node, certs) = protected().await;
    let certs = certs.path();
    let server = Subject { name: "node 1".into(), node: Some(NodeId(1)), hosts: vec!["127.0.0.1".into()] };
    // Longer than it takes until the node has read it.
    let end = SystemTime::now() + Duration::from_secs(15);
    issue(certs, "node-1", &server, end);
    wait_for("the new certificate", || node.log().contains("certificates have changed; new connections").then_some(()));
    assert!(run_as(&node, certs, "client", &["put", "k", "in time"]).status.success());
    let left = (end + Duration::from_secs(2)).duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(left).await;
    let refused = run_as(&node, certs, "client", &["put", "k", "late", "--timeout", "2"]);
    let words = "its certificate is not accepted: it has expired";
    assert!(refused.status.code() == Some(1) && stderr(&refused).contains(words), "{refused:?}");
    wait_for("its own log", || node.log().contains("the certificate for clients has expired").then_some(()));
    // Another one is taken up without a restart.
    issue(certs, "node-1", &server, SystemTime::now() + Duration::from_secs(3600));
    wait_for("service", || {
        run_as(&node, certs, "client", &["get", "k", "--timeout", "2"]).status.success().then_some(())
    });
}

/// Else whoever was let in once could stay for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_connection_ends_with_the_certificate_that_was_shown_on_it() {
    let (node, certs) = protected().await;
    let certs = certs.path();
    let file = |name: &str| certs.join(name);
    let put = PutRequest { key: "k".into(), ..PutRequest::default() };
    let mut honest = Abuser::connect(&node, 2).await;
    let end = SystemTime::now() + Duration::from_secs(8);
    issue(certs, "late", &somebody(), end);
    let tls = Tls::for_client(TlsFiles::new(file("late.crt"), file("late.key"), file("ca.crt"))).unwrap();
    let mut late = Abuser::connect_as(&node, &tls, 3).await;
    for client in [&mut honest, &mut late] {
        let status = client.ask(PUT, &put).await;
        assert_eq!(status.code(), Code::Ok, "{status:?}");
    }
    within("its end", async {
        while late.try_call(PUT).await.is_ok_and(|mut call| {
            call.reset();
            true
        }) {
            // Not so often that it is told to calm down.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await;
    assert!(SystemTime::now() > end, "it ended before its certificate");
    let log = node.log();
    assert!(
        log.contains("refused a client") && log.contains("the certificate that it has shown has expired meanwhile"),
        "{log}"
    );
    let status = honest.ask(PUT, &put).await;
    assert_eq!(status.code(), Code::Ok, "{status:?}");
}
