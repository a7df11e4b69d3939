//! Two sides over loopback, and what each learns of the other.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{Either, select};
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use super::dev::{DevCa, Issued, Subject, Validity};
use super::*;
use crate::testing::certs::Desk;
use crate::testing::conformance::connections::{Log, Stopwatch};
use crate::transport_kit::Entrance;
use crate::transport_kit::link::Gate;

const PROTOCOL: &[u8] = b"test/1";
const LIMIT: Duration = Duration::from_secs(10);

fn issue(ca: &DevCa, node: u64) -> Issued {
    Desk::issue(ca, node, Validity::days(1))
}

/// Somebody who is no node.
fn client(ca: &DevCa) -> Issued {
    ca.issue(&Subject { name: "client".into(), ..Subject::default() }, Validity::days(1)).unwrap()
}

/// Both ends of a connection.
async fn wire() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = futures_util::future::join(connecting, listener.accept()).await;
    (near.unwrap(), far.unwrap().0)
}

/// What whoever connects learns: that a byte came back, or what is wrong.
async fn try_it(tls: &Tls, stream: TcpStream, to: u64) -> Result<(), String> {
    let mut link = tls.connect_to_node(stream, NodeId(to), PROTOCOL).await.map_err(|f| f.reason().to_owned())?;
    link.write_all(b"x").await.unwrap();
    match link.read_u8().await {
        Ok(_) => Ok(()),
        Err(error) => Err(link.trouble().get().map_or_else(|| error.to_string(), str::to_owned)),
    }
}

/// What whoever accepts learns.
async fn let_in(tls: &Tls, stream: TcpStream, from: u64) -> Result<(), String> {
    let (mut link, identity) = tls.accept(stream, PROTOCOL, LIMIT).await.map_err(|why| why.reason().to_owned())?;
    identity.check(NodeId(from))?;
    link.write_all(b"y").await.unwrap();
    let _ = link.read_u8().await;
    Ok(())
}

/// Node 1 connects to node 2: what either learns.
async fn meet(from: &Tls, to: &Tls) -> (Result<(), String>, Result<(), String>) {
    let (near, far) = wire().await;
    futures_util::future::join(try_it(from, near, 2), let_in(to, far, 1)).await
}

#[tokio::test]
async fn two_nodes_prove_who_they_are() {
    let desk = Desk::new();
    let (one, two) = (desk.named("n1", &desk.ca, 1), desk.named("n2", &desk.ca, 2));
    assert_eq!(meet(&one, &two).await, (Ok(()), Ok(())));
    assert_eq!(one.own_nodes(), [NodeId(1)]);
}

/// As ssh has it, but for the end: a service that does not come up helps nobody.
#[test]
fn a_private_key_that_others_may_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new();
    let files = desk.lay("n1", &issue(&desk.ca, 1), &[&desk.ca]);
    let key = files.own.as_ref().unwrap().key.clone();
    for (mode, told) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o620, true), (0o644, true)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let log = Log::default();
        let _on = log.start();
        Tls::for_node(files.clone(), NodeId(1)).unwrap();
        let words = ["WARN", "others may read", &key.display().to_string(), &format!("{mode:04o}")];
        assert_eq!(log.lines(&words).len(), usize::from(told), "{mode:o}: {:?}", log.lines(&[]));
        assert!(told || log.lines(&["WARN"]).is_empty(), "{mode:o}: {:?}", log.lines(&[]));
    }
}

#[tokio::test]
async fn whoever_has_no_certificate_is_told_so() {
    let desk = Desk::new();
    let two = desk.named("n2", &desk.ca, 2);
    let nobody = Tls::for_client(TlsFiles { own: None, ca: desk.path("n2.ca") }).unwrap();
    let (near, far) = meet(&nobody, &two).await;
    assert_eq!(near.unwrap_err(), "it does not accept this side's certificate: none was presented");
    assert_eq!(far.unwrap_err(), "it presented no certificate");
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_in_either_direction() {
    let (desk, other) = (Desk::new(), Desk::other_ca());
    let two = desk.named("n2", &desk.ca, 2);
    let stranger = desk.named("n1", &other, 1);
    let (near, far) = meet(&stranger, &two).await;
    let (near, far) = (near.unwrap_err(), far.unwrap_err());
    assert!(
        near.contains("its certificate is not accepted: it is not signed by a CA in") && near.contains("n1.ca"),
        "{near}"
    );
    assert_eq!(far, "it does not accept this side's certificate: it is not signed by a CA that is known there");

    // One that trusts in both, but is not trusted.
    let files = desk.lay("credulous", &issue(&other, 1), &[&other, &desk.ca]);
    let (near, far) = meet(&Tls::for_node(files, NodeId(1)).unwrap(), &two).await;
    let far = far.unwrap_err();
    assert_eq!(
        near.unwrap_err(),
        "it does not accept this side's certificate: it is not signed by a CA that is known there"
    );
    assert!(
        far.contains("its certificate is not accepted: it is not signed by a CA in") && far.contains("n2.ca"),
        "{far}"
    );
}

#[tokio::test]
async fn a_certificate_of_another_node_is_refused_in_either_direction() {
    let desk = Desk::new();
    let (one, two, three) =
        (desk.named("n1", &desk.ca, 1), desk.named("n2", &desk.ca, 2), desk.named("n3", &desk.ca, 3));
    let (near, far) = meet(&one, &three).await;
    assert_eq!(
        near.unwrap_err(),
        "its certificate is not accepted: it is for n3 (node-3.raftkv), 127.0.0.1, not for n2 (node-2.raftkv)"
    );
    assert!(far.unwrap_err().contains("it does not accept this side's certificate"));
    let (_, far) = meet(&three, &two).await;
    assert_eq!(
        far.unwrap_err(),
        "the certificate is for n3, and is to be for node n1: it needs the DNS name node-1.raftkv"
    );
    let client = Tls::for_client(desk.lay("client", &client(&desk.ca), &[&desk.ca])).unwrap();
    assert!(meet(&client, &two).await.1.unwrap_err().contains("the certificate names no node"));
}

/// A certificate for all nodes would be one that any of them could pass for another with.
#[tokio::test]
async fn a_wildcard_stands_for_no_node() {
    let desk = Desk::new();
    let any = Subject { name: "any".into(), node: None, hosts: vec!["*.raftkv".into()] };
    let files = desk.lay("any", &desk.ca.issue(&any, Validity::days(1)).unwrap(), &[&desk.ca]);
    let error = Tls::for_node(files.clone(), NodeId(2)).unwrap_err().to_string();
    assert!(error.contains("any.crt: the certificate names no node"), "{error}");
    let (near, _) = meet(&desk.named("n1", &desk.ca, 1), &Tls::for_server(files).unwrap()).await;
    assert!(near.unwrap_err().contains("it is for *.raftkv, not for n2 (node-2.raftkv)"));
}

#[tokio::test]
async fn a_certificate_that_expires_lets_nobody_in_any_more_and_open_connections_go_on() {
    let desk = Desk::new();
    let two = desk.named("n2", &desk.ca, 2);
    let life = Duration::from_secs(3);
    let mut validity = Validity::days(0);
    validity.until += life;
    let begun = Instant::now();
    let files = desk.lay("n1", &Desk::issue(&desk.ca, 1, validity), &[&desk.ca]);
    let one = Tls::for_node(files.clone(), NodeId(1)).unwrap();
    let (near, far) = wire().await;
    let (open, accepted) =
        futures_util::future::join(one.connect_to_node(near, NodeId(2), PROTOCOL), two.accept(far, PROTOCOL, LIMIT))
            .await;
    let (mut open, (mut accepted, _)) = (open.unwrap(), accepted.unwrap());

    sleep((life + Duration::from_secs(1)).saturating_sub(begun.elapsed())).await;
    let (near, far) = meet(&one, &two).await;
    assert_eq!(far.unwrap_err(), "its certificate is not accepted: it has expired");
    assert_eq!(near.unwrap_err(), "it does not accept this side's certificate: it has expired, or is not valid yet");
    let (near, _) = meet(&two, &one).await;
    assert!(near.unwrap_err().contains("its certificate is not accepted"), "no longer as a server either");
    let error = Tls::for_node(files, NodeId(1)).unwrap_err().to_string();
    assert!(error.contains("n1.crt: it has expired; nobody would accept the certificate"), "{error}");

    open.write_all(b"still here").await.unwrap();
    let mut read = [0; 10];
    accepted.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"still here");
}

#[tokio::test]
async fn new_files_are_used_by_the_next_connection_and_bad_ones_are_not() {
    let (desk, new) = (Desk::new(), Desk::other_ca());
    let (one, two) = (desk.named("n1", &desk.ca, 1), desk.named("n2", &desk.ca, 2));
    assert_eq!(meet(&one, &two).await, (Ok(()), Ok(())));

    // Node 2 is to trust in another CA. Half of the files are there, and one of them is broken.
    desk.write("n2.ca", new.certificate());
    assert_eq!(meet(&one, &two).await, (Ok(()), Ok(())), "its own certificate would not be of that CA");
    desk.write("n2.crt", "-----BEGIN CERTIFICATE-----\nnone\n");
    assert_eq!(meet(&one, &two).await, (Ok(()), Ok(())));
    fs::remove_file(desk.path("n2.key")).unwrap();
    assert_eq!(meet(&one, &two).await, (Ok(()), Ok(())));

    desk.lay("n2", &issue(&new, 2), &[&new]);
    let (_, far) = meet(&one, &two).await;
    assert!(far.is_err(), "node 1 has a certificate of the old CA");
    desk.lay("n1", &issue(&new, 1), &[&new]);
    assert_eq!(meet(&one, &two).await, (Ok(()), Ok(())));
}

/// How a cluster gets another CA without a moment in which its nodes don't talk: first both are trusted in, then come the new certificates.
#[tokio::test]
async fn a_ca_is_replaced_by_way_of_a_file_that_holds_both() {
    let (desk, new) = (Desk::new(), Desk::other_ca());
    let old = &desk.ca;
    let (one, two) = (desk.named("n1", &desk.ca, 1), desk.named("n2", &desk.ca, 2));
    let steps: [&dyn Fn(); 6] = [
        &|| drop(desk.trust("n1", &[old, &new])),
        &|| drop(desk.trust("n2", &[old, &new])),
        &|| drop(desk.lay("n1", &issue(&new, 1), &[old, &new])),
        &|| drop(desk.lay("n2", &issue(&new, 2), &[old, &new])),
        &|| drop(desk.trust("n1", &[&new])),
        &|| drop(desk.trust("n2", &[&new])),
    ];
    for (n, step) in steps.iter().enumerate() {
        step();
        assert_eq!(meet(&one, &two).await, (Ok(()), Ok(())), "after step {n}");
        assert_eq!(try_and_accept(&two, &one).await, (Ok(()), Ok(())), "after step {n}");
    }
}

/// Node 2 connects to node 1.
async fn try_and_accept(from: &Tls, to: &Tls) -> (Result<(), String>, Result<(), String>) {
    let (near, far) = wire().await;
    futures_util::future::join(try_it(from, near, 1), let_in(to, far, 2)).await
}

#[tokio::test]
async fn one_side_without_tls_is_told_from_a_broken_one() {
    let desk = Desk::new();
    let tls = desk.named("n2", &desk.ca, 2);
    let gate = |tls| Gate { tls, protocol: PROTOCOL, limit: LIMIT };
    let nowhere = "127.0.0.1:1".parse().unwrap();

    // Without it to with it.
    let (near, far) = wire().await;
    let plain = async {
        let mut link = Link::plain(near);
        link.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        link.read_u8().await.unwrap_err();
        link.trouble().get().map(str::to_owned)
    };
    let (trouble, denied) = futures_util::future::join(plain, gate(Some(tls.clone())).pass(far, nowhere)).await;
    assert!(trouble.unwrap().contains("the other side speaks TLS, and this one does not"));
    let denied = denied.unwrap_err();
    assert!(denied.is_news() && denied.reason().contains("it does not speak TLS, and this side does"), "{denied:?}");

    // With it to without it: to a server that answers, and to one that hangs up.
    for answer in [&b"\0\0\x12\x04\0\0\0\0\0"[..], b""] {
        let (near, far) = wire().await;
        let plain = async {
            let mut link = gate(None).pass(far, nowhere).await.unwrap().link;
            link.read_u8().await.unwrap_err();
            link.write_all(answer).await.unwrap();
            link.trouble().get().map(str::to_owned)
        };
        let (connected, trouble) =
            futures_util::future::join(tls.connect_to_node(near, NodeId(1), PROTOCOL), plain).await;
        let reason = connected.unwrap_err().reason().to_owned();
        assert!(reason.contains("it does not speak TLS") || reason.contains("whether it speaks TLS"), "{reason}");
        assert!(trouble.unwrap().contains("the other side speaks TLS, and this one does not"));
    }
}

#[tokio::test]
async fn whoever_says_nothing_is_hung_up_on_in_time_and_whoever_leaves_is_no_news() {
    let desk = Desk::new();
    let two = desk.named("n2", &desk.ca, 2);
    let (_near, far) = wire().await;
    let begun = Instant::now();
    let denied = two.accept(far, PROTOCOL, Duration::from_millis(200)).await.unwrap_err();
    assert!(denied.reason().contains("did not make the handshake of TLS within 200ms"), "{denied:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    let (near, far) = wire().await;
    drop(near);
    assert!(!two.accept(far, PROTOCOL, LIMIT).await.unwrap_err().is_news());
}

/// It was told as refused for what it is, where the handshake failed of its end.
#[tokio::test]
async fn whoever_must_go_for_others_in_its_handshake_is_no_news() {
    let desk = Desk::new();
    let gate = Gate { tls: Some(desk.named("n2", &desk.ca, 2)), protocol: PROTOCOL, limit: Duration::from_secs(600) };
    let entrance = Entrance::new(2, 2, 1);
    let (mut near, far) = wire().await;
    let (visitor, _) = entrance.enter(None).unwrap();
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let connections = stream::iter([(far, nowhere, visitor)]).chain(stream::pending());
    let denied = Arc::new(AtomicUsize::new(0));
    let count = denied.clone();
    let mut arrivals = gate.all(connections, move |_, _| _ = count.fetch_add(1, Ordering::Relaxed)).boxed();
    let leaving = async {
        // The head of a greeting.
        near.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        let other = entrance.enter(None).unwrap();
        assert!(near.read_u8().await.is_err());
        other
    };
    let outcome = timeout(LIMIT, select(arrivals.next(), Box::pin(leaving))).await;
    let has_left = matches!(outcome.expect("an end"), Either::Right(_));
    assert!(has_left, "it had not made its handshake");
    assert!(timeout(Duration::from_millis(50), arrivals.next()).await.is_err());
    assert_eq!(denied.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn another_protocol_is_told_from_a_wrong_certificate() {
    let desk = Desk::new();
    let (one, two) = (desk.named("n1", &desk.ca, 1), desk.named("n2", &desk.ca, 2));
    let (near, far) = wire().await;
    let (near, far) =
        futures_util::future::join(one.connect_to_node(near, NodeId(2), b"h2"), two.accept(far, PROTOCOL, LIMIT)).await;
    assert!(near.unwrap_err().reason().contains("it speaks another protocol over TLS"));
    assert!(far.unwrap_err().reason().contains("it speaks another protocol over TLS"));
}

#[tokio::test]
async fn a_server_is_known_by_its_host() {
    let desk = Desk::new();
    let server = Tls::for_server(desk.lay("n2", &issue(&desk.ca, 2), &[&desk.ca])).unwrap();
    let client = Tls::for_client(desk.lay("client", &client(&desk.ca), &[&desk.ca])).unwrap();
    for (host, fits) in [("127.0.0.1", true), ("localhost", false), ("::1", false)] {
        let (near, far) = wire().await;
        let (near, _) = futures_util::future::join(
            client.connect_to_host(near, host, PROTOCOL),
            server.accept(far, PROTOCOL, LIMIT),
        )
        .await;
        match near {
            Ok(_) => assert!(fits, "{host}"),
            Err(failure) => {
                let expected = format!("not for {host}");
                assert!(!fits && failure.reason().contains(&expected), "{host}: {}", failure.reason());
            }
        }
    }
}

#[test]
fn a_mistake_in_the_files_names_the_file_and_what_to_do() {
    let (desk, other) = (Desk::new(), Desk::other_ca());
    let good = desk.lay("n1", &issue(&desk.ca, 1), &[&desk.ca]);
    desk.lay("n2", &issue(&desk.ca, 2), &[&desk.ca]);
    desk.trust("other", &[&other]);
    desk.write("empty", "");
    let mut expired = Validity::days(1);
    expired.until = expired.from + Duration::from_secs(60);
    desk.lay("expired", &Desk::issue(&desk.ca, 1, expired), &[&desk.ca]);
    desk.lay("client", &client(&desk.ca), &[&desk.ca]);
    let own = |cert: &str, key: &str, ca: &str| TlsFiles::new(desk.path(cert), desk.path(key), desk.path(ca));
    let cases = [
        (own("nowhere", "n1.key", "n1.ca"), "nowhere: can't read the file"),
        (own("empty", "n1.key", "n1.ca"), "empty: there is no certificate in the file"),
        (own("n1.key", "n1.key", "n1.ca"), "n1.key: there is no certificate in the file"),
        (own("n1.crt", "n1.crt", "n1.ca"), "n1.crt: there is no private key in the file"),
        (own("n1.crt", "n2.key", "n1.ca"), "n2.key: this is not the key of the certificate in"),
        (own("n1.crt", "n1.key", "empty"), "empty: there is no certificate in the file"),
        (own("n1.crt", "n1.key", "other.ca"), "n1.crt: it is not signed by a CA in"),
        (own("n2.crt", "n2.key", "n1.ca"), "n2.crt: the certificate is for n2, and is to be for node n1"),
        (own("expired.crt", "expired.key", "n1.ca"), "expired.crt: it has expired"),
        (own("client.crt", "client.key", "n1.ca"), "client.crt: the certificate names no node"),
    ];
    assert!(Tls::for_node(good, NodeId(1)).is_ok());
    for (files, wanted) in cases {
        let error = Tls::for_node(files, NodeId(1)).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}: not {wanted}");
        assert!(error.contains(&*desk.dir().display().to_string()), "{error}: no whole path");
    }
}

#[test]
fn it_is_known_when_a_certificate_expires() {
    let desk = Desk::new();
    let mut validity = Validity::days(30);
    for seconds in [60, 86_400, 1_000_000_000] {
        validity.until = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000 + seconds);
        let files = desk.lay("n1", &Desk::issue(&desk.ca, 1, validity), &[&desk.ca]);
        assert_eq!(Tls::for_node(files.clone(), NodeId(1)).unwrap().expires(), Some(validity.until));
        assert_eq!(Tls::for_client(files).unwrap().expires(), None);
    }
}

/// Whoever serves a connection may want it to end with the certificate that was shown on it.
#[tokio::test]
async fn a_connection_knows_when_the_certificate_expires_that_was_shown_on_it() {
    let desk = Desk::new();
    let two = desk.named("n2", &desk.ca, 2);
    let mut validity = Validity::days(30);
    for seconds in [60, 86_400, 1_000_000_000] {
        validity.until = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000 + seconds);
        let files = desk.lay("n1", &Desk::issue(&desk.ca, 1, validity), &[&desk.ca]);
        let one = Tls::for_node(files, NodeId(1)).unwrap();
        let (near, far) = wire().await;
        let connecting = one.connect_to_node(near, NodeId(2), PROTOCOL);
        let (opened, accepted) = futures_util::future::join(connecting, two.accept(far, PROTOCOL, LIMIT)).await;
        assert_eq!(opened.unwrap().expires(), None);
        assert_eq!(accepted.unwrap().0.expires(), Some(validity.until));
    }
    assert_eq!(Link::plain(wire().await.0).expires(), None);
}

/// A CA between the root and the node that was renewed with its old key: nodes may show the expired certificate beside the one in use, in either order.
#[tokio::test]
async fn a_certificate_that_has_expired_beside_the_one_in_use_ends_no_connection() {
    let desk = Desk::new();
    let now = Validity::days(1).from + Duration::from_secs(3600);
    let between = |from: Duration, until: Duration| Validity { from: now - from, until: now + until };
    let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
    let renewed = between(hour, day * 5);
    let (root, [old, new], middle) = renewed_ca([Validity { from: now - day * 9, until: now - day }, renewed]);
    for (until, expected) in [(day * 2, now + day * 2), (day * 7, renewed.until)] {
        // It is older than the renewal.
        let issued = Desk::issue(&middle, 1, between(day * 5, until));
        for chain in [[&old, &new], [&new, &old]] {
            let shown: String = [&issued.certificate].into_iter().chain(chain).map(String::as_str).collect();
            desk.write("n1.crt", &shown);
            desk.write("n1.key", &issued.key);
            desk.write("n1.ca", &root);
            let files = TlsFiles::new(desk.path("n1.crt"), desk.path("n1.key"), desk.path("n1.ca"));
            let one = Tls::for_node(files, NodeId(1)).unwrap();
            let (near, far) = wire().await;
            let connecting = one.connect_to_node(near, NodeId(1), PROTOCOL);
            let (opened, accepted) = futures_util::future::join(connecting, one.accept(far, PROTOCOL, LIMIT)).await;
            opened.unwrap();
            let expires = accepted.unwrap().0.expires().unwrap();
            let away = expires.duration_since(expected).or_else(|_| expected.duration_since(expires)).unwrap();
            assert!(away < Duration::from_secs(2), "{away:?} from {expected:?}");
        }
    }
}

/// A root's certificate, those of a CA below it, one for each time, and that CA.
fn renewed_ca(times: [Validity; 2]) -> (String, [String; 2], DevCa) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let (root_key, below) = (KeyPair::generate().unwrap(), DevCa::new(Validity::days(1)).unwrap());
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = root.self_signed(&root_key).unwrap().pem();
    let root = Issuer::new(root, root_key);
    let certificates = times.map(|time| below.signed_by(&root, time).unwrap());
    (certificate, certificates, below)
}

#[test]
fn a_ca_is_read_again_from_its_key() {
    let desk = Desk::new();
    let first = Desk::other_ca();
    let again = DevCa::from_pem(first.certificate(), &first.key()).unwrap();
    assert!(Tls::for_node(desk.lay("n1", &issue(&again, 1), &[&first]), NodeId(1)).is_ok());
    assert!(DevCa::from_pem(first.certificate(), "none").is_err());
}

#[test]
fn names_of_nodes() {
    assert_eq!(node_name(NodeId(7)), "node-7.raftkv");
    for id in [1, 7, u64::MAX] {
        assert_eq!(named_node(&node_name(NodeId(id))), Some(NodeId(id)));
    }
    for name in ["node-07.raftkv", "node-.raftkv", "node-+7.raftkv", "node-7", "node-7.raftkv.example", "*.raftkv"] {
        assert_eq!(named_node(name), None, "{name}");
    }
}

/// A record of TLS that nobody has encrypted.
fn damage() -> Vec<u8> {
    [&[0x17, 3, 3, 0, 32][..], &[7; 32]].concat()
}

/// It was taken for a certificate that is refused: a client then counted a write as not done whose answer alone was damaged. With TLS 1.3 that may be the very first
/// record that comes back, and what comes in one read with it was not handed out before.
#[tokio::test]
async fn damage_is_no_refusal_of_a_certificate_however_early() {
    let desk = Desk::new();
    let (one, two) = (desk.named("n1", &desk.ca, 1), desk.named("n2", &desk.ca, 2));
    for (words_before, in_one_read) in [(1, false), (0, false), (1, true)] {
        let (near, far) = wire().await;
        let (sent, was_sent) = tokio::sync::oneshot::channel();
        let (read, was_read) = tokio::sync::oneshot::channel();
        let answering = async {
            let (mut link, _) = two.accept(far, PROTOCOL, LIMIT).await.unwrap();
            assert_eq!(link.read_u8().await.unwrap(), b'x', "it has the request");
            link.write_all(&b"y"[..words_before]).await.unwrap();
            link.flush().await.unwrap();
            if words_before > 0 && !in_one_read {
                was_read.await.unwrap();
            }
            assert_eq!(link.tcp().try_write(&damage()).unwrap(), damage().len());
            sent.send(()).unwrap();
            link
        };
        let asking = async {
            let mut link = one.connect_to_node(near, NodeId(2), PROTOCOL).await.unwrap();
            link.write_all(b"x").await.unwrap();
            link.flush().await.unwrap();
            if words_before > 0 && !in_one_read {
                link.read_u8().await.unwrap();
                read.send(()).unwrap();
            }
            was_sent.await.unwrap();
            // All of it is there: a record of one byte takes 23.
            let expected = damage().len() + if in_one_read { 23 } else { 0 };
            while link.tcp().peek(&mut [0; 128]).await.unwrap() < expected {
                sleep(Duration::from_millis(1)).await;
            }
            let error = link.read_u8().await.unwrap_err();
            assert_eq!(link.trouble().get(), None, "{error}");
        };
        futures_util::future::join(asking, answering).await;
    }
}

/// It was looked at once alone: nobody read it again before the next one was laid, or the old one had expired.
#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_used_once_it_is() {
    let desk = Desk::new();
    let (one, two) = (desk.named("n1", &desk.ca, 1), desk.named("n2", &desk.ca, 2));
    let log = Log::default();
    let _guard = log.start();
    let (old, begun) = (two.expires(), Instant::now());
    let mut validity = Validity::days(2);
    // In whole seconds, as certificates have it: nine to ten from now on, so that it is looked at before, however busy the machine is.
    validity.from += Duration::from_secs(3600 + 10);
    desk.lay("n2", &Desk::issue(&desk.ca, 2, validity), &[&desk.ca]);
    while two.expires() == old {
        assert!(begun.elapsed() < Duration::from_secs(60), "the new one is not used: {:?}", log.lines(&[]));
        assert_eq!(meet(&one, &two).await, (Ok(()), Ok(())));
        sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() > Duration::from_secs(9), "it was not valid before");
    assert_eq!(log.lines(&["ERROR", "can't be used", "it is not valid yet"]).len(), 1, "{:?}", log.lines(&[]));
    assert_eq!(meet(&one, &two).await, (Ok(()), Ok(())));
}

/// What the log says of files that are no good it says once, however often they are read.
#[tokio::test]
async fn what_is_wrong_with_files_is_said_once_until_it_is_something_else() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::new();
    let two = desk.named("n2", &desk.ca, 2);
    let log = Log::default();
    let _guard = log.start();
    // A key that others may read is worth a word as well, once it is used.
    fs::set_permissions(desk.path("n2.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (good, other) = (fs::read_to_string(desk.path("n2.crt")).unwrap(), Desk::other_ca());
    desk.trust("n2", &[&other]);
    let cases =
        [("none", "there is no certificate"), ("-----BEGIN CERTIFICATE-----\nx\n", "no PEM"), (&good, "not signed by")];
    for (text, wrong) in cases {
        desk.write("n2.crt", text);
        for _ in 0..3 {
            two.refresh().await;
            sleep(AGAIN_AFTER / 2 + Duration::from_millis(10)).await;
        }
        assert_eq!(log.lines(&["ERROR", "can't be used", wrong]).len(), 1, "{wrong}");
    }
    assert_eq!(log.lines(&["WARN", "others may read"]).len(), 0, "{:?}", log.lines(&[]));
    desk.trust("n2", &[&desk.ca]);
    two.refresh().await;
    assert_eq!(log.lines(&["INFO", "certificates have changed"]).len(), 1);
    assert_eq!(log.lines(&["WARN", "others may read"]).len(), 1);
    assert_eq!(log.lines(&["can't be used"]).len(), cases.len());
}

/// A disk that hangs holds all threads that wait for it; it must not keep members and clients apart as well.
#[test]
fn whoever_connects_waits_for_no_disk() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    let (go, hang) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let desk = Desk::new();
        let (one, two) = (desk.named("n1", &desk.ca, 1), desk.named("n2", &desk.ca, 2));
        #[allow(clippy::disallowed_methods, reason = "it stands for a read of a disk that hangs")]
        let hanging = tokio::task::spawn_blocking(move || hang.recv());
        for _ in 0..3 {
            let met = tokio::time::timeout(LIMIT, meet(&one, &two)).await.expect("a handshake in time");
            assert_eq!(met, (Ok(()), Ok(())));
        }
        assert!(two.expires().is_some());
        // What is short of time gets no more of it for looking.
        let (_near, far) = wire().await;
        let watch = Stopwatch::start();
        two.accept(far, PROTOCOL, Duration::from_millis(50)).await.unwrap_err();
        watch.expect_less_than(PATIENCE);
        drop(go);
        hanging.await.unwrap().unwrap_err();
    });
}
