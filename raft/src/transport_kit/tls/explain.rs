//! What TLS libraries say, in words that name the file to look at.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use super::files::TlsFiles;
use super::named_node;

/// Who is spoken of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    ByWhoeverConnects,
    ByWhoeverAnswers,
}

const ONE_SIDED: &str = "it does not speak TLS, and this side does: give certificates to both, or to neither";

/// Why a handshake failed.
pub(super) fn explain(error: &io::Error, files: &TlsFiles, who: Said) -> String {
    let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match (error.kind(), who) {
            (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset, Said::ByWhoeverAnswers) => {
                format!(
                    "it closed the connection in the handshake of TLS ({error}): check whether it speaks TLS at all"
                )
            }
            _ => format!("the connection was lost in the handshake of TLS: {error}"),
        };
    };
    if let Error::InvalidCertificate(error) = inner {
        return format!("its certificate is not accepted: {}", of_certificate(error, &files.ca.display().to_string()));
    }
    of_other(inner)
}

/// What is wrong with this side's own certificate.
pub(super) fn of_own(error: &Error, files: &TlsFiles) -> String {
    let Error::InvalidCertificate(error) = error else { return error.to_string() };
    let reason = of_certificate(error, &files.ca.display().to_string());
    format!("{reason}; nobody would accept the certificate: have another one made")
}

/// What the other side said, if it refused the handshake that this side took for done: with TLS 1.3 whoever connects may have sent a request by then, and nobody has
/// looked at it. No other error says so much: bytes that can't be decrypted may be the answer.
pub(crate) fn refusal(error: &io::Error) -> Option<String> {
    use AlertDescription as A;
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let Some(Error::AlertReceived(alert)) = inner else { return None };
    // Alerts are encrypted by now, so it was the other side that sent this one. What it is about is looked at in handshakes alone (RFC 8446 §6.2).
    let of_a_certificate = matches!(
        alert,
        A::CertificateRequired
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
    );
    (of_a_certificate || matches!(alert, A::NoApplicationProtocol | A::ProtocolVersion)).then(|| of_alert(*alert))
}

/// Without times, which would make each refusal another one.
fn of_certificate(error: &CertificateError, ca: &str) -> String {
    use CertificateError as E;
    if matches!(error, E::Expired | E::ExpiredContext { .. }) {
        return "it has expired".into();
    }
    if matches!(error, E::NotValidYet | E::NotValidYetContext { .. }) {
        return "it is not valid yet: check the clocks of both".into();
    }
    if matches!(error, E::UnknownIssuer | E::BadSignature) {
        return format!("it is not signed by a CA in {ca}");
    }
    if let E::NotValidForNameContext { expected, presented } = error {
        return format!("it is for {}, not for {}", named(presented), with_node(&expected.to_str()));
    }
    if let E::InvalidPurposeContext { required, .. } = error {
        return format!("it may not be used for {required}; that of a node needs both clientAuth and serverAuth");
    }
    error.to_string()
}

/// As certificates name them, without the library's way of writing names.
fn named(presented: &[String]) -> String {
    let bare = presented.iter().map(|name| {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        with_node(inner.unwrap_or(name).trim_matches('"'))
    });
    let names = bare.collect::<Vec<_>>().join(", ");
    if names.is_empty() { "no name".into() } else { names }
}

/// The name, with the node that it is the name of.
fn with_node(name: &str) -> String {
    named_node(name).map_or_else(|| name.to_owned(), |node| format!("{node} ({name})"))
}

fn of_other(error: &Error) -> String {
    if let Error::AlertReceived(alert) = error {
        return of_alert(*alert);
    }
    let words = [
        (matches!(error, Error::NoCertificatesPresented), "it presented no certificate"),
        (matches!(error, Error::InvalidMessage(_)), ONE_SIDED),
        (matches!(error, Error::NoApplicationProtocol), "it speaks another protocol over TLS than this side"),
        (matches!(error, Error::PeerIncompatible(_)), "it does not speak TLS 1.3 as this side does"),
    ];
    words.iter().find(|(fits, _)| *fits).map_or_else(|| error.to_string(), |(_, words)| (*words).to_owned())
}

/// What the other side said.
fn of_alert(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let theirs = |reason: &str| format!("it does not accept this side's certificate: {reason}");
    if alert == A::CertificateRequired {
        return theirs("none was presented");
    }
    if matches!(alert, A::UnknownCA | A::DecryptError) {
        return theirs("it is not signed by a CA that is known there");
    }
    if alert == A::CertificateExpired {
        return theirs("it has expired, or is not valid yet");
    }
    if matches!(
        alert,
        A::BadCertificate | A::CertificateUnknown | A::CertificateRevoked | A::UnsupportedCertificate | A::AccessDenied
    ) {
        return theirs(&format!("{alert:?}"));
    }
    if alert == A::NoApplicationProtocol {
        return "it speaks another protocol over TLS: check the address, and which transport is used there".into();
    }
    if matches!(alert, A::ProtocolVersion | A::HandshakeFailure) {
        return "it does not speak TLS 1.3".into();
    }
    format!("it ended the connection with TLS's alert {alert:?}")
}
