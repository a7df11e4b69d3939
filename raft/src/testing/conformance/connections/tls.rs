//! The same over TLS (feature `dev-certs`), and who is refused then.
//!
//! ```text
//! raftkv::transport_conformance!(OverTcp(Protected::new(MyHalves)));
//! raftkv::tls_conformance!(MyHalves);
//! ```

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::testing::certs::Desk;
use crate::transport_kit::Tls;
use crate::transport_kit::tls::TlsFiles;
use crate::transport_kit::tls::dev::Validity;

/// How the two halves of a transport come to be that has TLS.
pub trait TlsHalves: Halves {
    /// The receiving half, with these limits, or those that it has where nobody says anything.
    fn serve_tls(
        &self,
        listener: TcpListener,
        inbox: Inbox,
        limits: Option<Limits>,
        tls: Tls,
        stopped: Stopped,
    ) -> Serving;

    /// The sending half.
    fn transport_tls(&self, local: Local, options: Options, tls: Tls) -> Box<dyn Transport>;
}

/// Halves with TLS, for the suites that don't care.
pub struct Protected<H> {
    halves: H,
    desk: Desk,
}

impl<H> Protected<H> {
    /// With a CA of their own.
    #[must_use]
    #[allow(clippy::missing_panics_doc, reason = "a test reports by panicking")]
    pub fn new(halves: H) -> Self {
        Self { halves, desk: Desk::new() }
    }
}

impl<H: TlsHalves> Halves for Protected<H> {
    fn serve(&self, listener: TcpListener, inbox: Inbox, limits: Option<Limits>, stopped: Stopped) -> Serving {
        let tls = self.desk.node(inbox.node().0);
        self.halves.serve_tls(listener, inbox, limits, tls, stopped)
    }

    fn transport(&self, local: Local, options: Options) -> Box<dyn Transport> {
        let tls = self.desk.node(local.node.id.0);
        self.halves.transport_tls(local, options, tls)
    }
}

/// Defines one `#[test]` for each case; the argument is an expression that makes the [`TlsHalves`].
#[macro_export]
macro_rules! tls_conformance {
    ($halves:expr) => {
        $crate::connection_conformance! { @cases $halves;
            peers_with_their_certificates_are_connected
            a_peer_without_a_certificate_is_refused_by_name
            a_peer_of_another_ca_is_refused_by_name
            a_peer_whose_certificate_has_expired_is_refused_by_name
            a_peer_with_another_nodes_certificate_is_refused_by_name
            an_answer_with_another_nodes_certificate_is_refused_by_name
            a_peer_without_tls_is_told_so
            a_server_without_tls_is_told_so
            a_connection_that_never_makes_the_handshake_is_hung_up_on
            connections_that_end_in_the_handshake_are_counted_and_no_news
            certificates_are_replaced_while_both_halves_run
        }
    };
}

async fn receiver(halves: &dyn TlsHalves, tls: Tls) -> Receiver {
    Receiver::serving(2, |listener, inbox, stopped| halves.serve_tls(listener, inbox, None, tls, stopped)).await
}

/// Sends until it is refused for this reason; both sides' logs say why, once, though it is tried again and again.
async fn is_refused(halves: &dyn TlsHalves, b: &Receiver, tls: Tls, told: &str, logged: &str) {
    let log = Log::default();
    let _guard = log.start();
    let transport = halves.transport_tls(local(), quick(), tls);
    let error = until_it_fails(&*transport, &b.peer, |n| tick(&b.peer, n)).await;
    assert!(refused(&error).contains(told), "{error}");
    sleep(Duration::from_millis(500)).await;
    transport.send(&b.peer, vec![tick(&b.peer, 1)]).await.unwrap_err();
    let ours = log.lines(&["WARN", "trying again now and then", told, "lane=control"]);
    let theirs = log.lines(&["WARN", "refused a peer", logged, "remote=127.0.0.1"]);
    assert_eq!((ours.len(), theirs.len()), (1, 1), "{:?}", log.lines(&[]));
}

/// The way it is meant.
pub async fn peers_with_their_certificates_are_connected(halves: &dyn TlsHalves) {
    let desk = Desk::new();
    let mut b = receiver(halves, desk.node(2)).await;
    let transport = halves.transport_tls(local(), quick(), desk.node(1));
    transport.send(&b.peer, vec![tick(&b.peer, 1)]).await.unwrap();
    transport.send(&b.peer, vec![load(&b.peer, 2, 2 << 20)]).await.unwrap();
    b.until(1).await;
    transport.send(&b.peer, vec![tick(&b.peer, 3)]).await.unwrap();
    b.until(3).await;
}

/// TLS 1.3 tells it only after its own handshake is done.
pub async fn a_peer_without_a_certificate_is_refused_by_name(halves: &dyn TlsHalves) {
    let desk = Desk::new();
    let b = receiver(halves, desk.named("n2", &desk.ca, 2)).await;
    let nobody = Tls::for_client(TlsFiles { own: None, ca: desk.path("n2.ca") }).unwrap();
    let told = "it does not accept this side's certificate: none was presented";
    is_refused(halves, &b, nobody, told, "it presented no certificate").await;
}

/// One that was made for another cluster.
pub async fn a_peer_of_another_ca_is_refused_by_name(halves: &dyn TlsHalves) {
    let (desk, other) = (Desk::new(), Desk::other_ca());
    let b = receiver(halves, desk.node(2)).await;
    // It trusts in both, so that it gets to present its certificate.
    let files = desk.lay("n1", &Desk::issue(&other, 1, Validity::days(1)), &[&other, &desk.ca]);
    let stranger = Tls::for_node(files, NodeId(1)).unwrap();
    let told = "it does not accept this side's certificate: it is not signed by a CA that is known there";
    is_refused(halves, &b, stranger, told, "its certificate is not accepted: it is not signed by a CA in").await;
}

/// Nobody renewed it. What was connected before goes on.
pub async fn a_peer_whose_certificate_has_expired_is_refused_by_name(halves: &dyn TlsHalves) {
    let desk = Desk::new();
    let mut b = receiver(halves, desk.node(2)).await;
    let mut validity = Validity::days(0);
    validity.until += Duration::from_secs(3);
    let begun = Instant::now();
    let files = desk.lay("n1", &Desk::issue(&desk.ca, 1, validity), &[&desk.ca]);
    let one = Tls::for_node(files, NodeId(1)).unwrap();
    let early = halves.transport_tls(local(), quick(), one.clone());
    early.send(&b.peer, vec![tick(&b.peer, 1)]).await.unwrap();
    b.until(1).await;
    sleep(Duration::from_secs(4).saturating_sub(begun.elapsed())).await;
    let told = "it does not accept this side's certificate: it has expired";
    is_refused(halves, &b, one, told, "its certificate is not accepted: it has expired").await;
    early.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    b.until(2).await;
}

/// A member that would speak for another one.
pub async fn a_peer_with_another_nodes_certificate_is_refused_by_name(halves: &dyn TlsHalves) {
    let desk = Desk::new();
    let b = receiver(halves, desk.node(2)).await;
    let told = "the certificate is for n3, and is to be for node n1";
    is_refused(halves, &b, desk.node(3), told, told).await;
}

/// A member that would listen for another one: here it is the sender who refuses.
pub async fn an_answer_with_another_nodes_certificate_is_refused_by_name(halves: &dyn TlsHalves) {
    let desk = Desk::new();
    let b = receiver(halves, desk.node(3)).await;
    let told = "its certificate is not accepted: it is for n3 (node-3.raftkv), 127.0.0.1, not for n2 (node-2.raftkv)";
    is_refused(halves, &b, desk.node(1), told, "it does not accept this side's certificate").await;
}

/// Where only the receiver was given certificates.
pub async fn a_peer_without_tls_is_told_so(halves: &dyn TlsHalves) {
    let desk = Desk::new();
    let b = receiver(halves, desk.node(2)).await;
    let log = Log::default();
    let _guard = log.start();
    let transport = halves.transport(local(), quick());
    let error = until_it_fails(&*transport, &b.peer, |n| tick(&b.peer, n)).await;
    assert!(refused(&error).contains("the other side speaks TLS, and this one does not"), "{error}");
    let words = ["WARN", "refused a peer", "it does not speak TLS, and this side does", "remote=127.0.0.1"];
    // The other side may know of it first.
    within("the line", async {
        while log.lines(&words).is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(log.lines(&words).len(), 1, "{:?}", log.lines(&[]));
}

/// Where only the sender was.
pub async fn a_server_without_tls_is_told_so(halves: &dyn TlsHalves) {
    let desk = Desk::new();
    let b = Receiver::start(halves, 2, None).await;
    let log = Log::default();
    let _guard = log.start();
    let transport = halves.transport_tls(local(), quick(), desk.node(1));
    let error = until_it_fails(&*transport, &b.peer, |n| tick(&b.peer, n)).await;
    let text = error.to_string();
    assert!(text.contains("it does not speak TLS") || text.contains("whether it speaks TLS"), "{text}");
    let words = "the other side speaks TLS, and this one does not";
    within("the line", async {
        while log.lines(&["WARN", "refused a peer", words, "remote=127.0.0.1"]).is_empty() {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A port scanner, or a peer that hangs.
pub async fn a_connection_that_never_makes_the_handshake_is_hung_up_on(halves: &dyn TlsHalves) {
    let desk = Desk::new();
    let limits = Some(Limits { handshake: Duration::from_millis(200), ..Limits::default() });
    let tls = desk.node(2);
    let mut b =
        Receiver::serving(2, |listener, inbox, stopped| halves.serve_tls(listener, inbox, limits, tls, stopped)).await;
    let mut silent = TcpStream::connect(&*b.peer.address).await.unwrap();
    let transport = halves.transport_tls(local(), quick(), desk.node(1));
    transport.send(&b.peer, vec![tick(&b.peer, 1)]).await.unwrap();
    b.until(1).await;
    let begun = Instant::now();
    let read = within("the hang-up", silent.read(&mut [0; 64])).await;
    assert!(!matches!(read, Ok(1..)), "{read:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    transport.send(&b.peer, vec![tick(&b.peer, 2)]).await.unwrap();
    b.until(2).await;
}

/// A load balancer that looks whether somebody is there, or a peer that does not get far: the log has nothing to tell, and still it can be seen.
pub async fn connections_that_end_in_the_handshake_are_counted_and_no_news(halves: &dyn TlsHalves) {
    let desk = Desk::new();
    let mut b = receiver(halves, desk.node(2)).await;
    let log = Log::default();
    let _guard = log.start();
    for opening in [&b""[..], &[0x16, 3, 1]] {
        let mut stream = TcpStream::connect(&*b.peer.address).await.unwrap();
        stream.write_all(opening).await.unwrap();
    }
    within("the count", async {
        while b.arrivals.refused().error < 2 {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(log.lines(&["WARN"]).is_empty(), "{:?}", log.lines(&[]));
    let transport = halves.transport_tls(local(), quick(), desk.node(1));
    transport.send(&b.peer, vec![tick(&b.peer, 1)]).await.unwrap();
    b.until(1).await;
}

/// All of them, and the CA at once, so that old and new can be told apart: what is open goes on, and nobody is let in any more who has old ones.
pub async fn certificates_are_replaced_while_both_halves_run(halves: &dyn TlsHalves) {
    let (desk, new) = (Desk::new(), Desk::other_ca());
    let mut b = receiver(halves, desk.named("n2", &desk.ca, 2)).await;
    let (peer, one) = (b.peer.clone(), desk.named("n1", &desk.ca, 1));
    let early = halves.transport_tls(local(), quick(), one.clone());
    early.send(&peer, vec![tick(&peer, 1)]).await.unwrap();
    b.until(1).await;

    let log = Log::default();
    let _guard = log.start();
    desk.write("n2.crt", "no certificate");
    let again = halves.transport_tls(local(), quick(), one.clone());
    again.send(&peer, vec![tick(&peer, 2)]).await.unwrap();
    b.until(2).await;
    let failed =
        log.lines(&["ERROR", "certificates have changed, but can't be used", "n2.crt: there is no certificate"]);
    assert_eq!(failed.len(), 1, "{:?}", log.lines(&[]));

    let old = desk.named("old", &desk.ca, 1);
    desk.lay("n2", &Desk::issue(&new, 2, Validity::days(1)), &[&new]);
    let late = halves.transport_tls(local(), quick(), old);
    let error = until_it_fails(&*late, &peer, |n| tick(&peer, n)).await;
    assert!(refused(&error).contains("certificate"), "{error}");
    assert_eq!(log.lines(&["INFO", "certificates have changed; new connections use the new ones", "n2.crt"]).len(), 1);

    desk.lay("n1", &Desk::issue(&new, 1, Validity::days(1)), &[&new]);
    let third = halves.transport_tls(local(), quick(), one);
    until_it_works(&*third, &peer, tick(&peer, 3)).await;
    b.until(3).await;
    early.send(&peer, vec![tick(&peer, 4)]).await.unwrap();
    b.until(4).await;
}
