//! A CA and certificates for development and for tests (feature `dev-certs`). Whoever reads the CA's key can be any node: a cluster that matters gets its
//! certificates from where its owner's others come from.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::node_name;
use crate::types::NodeId;

/// A CA of its own.
pub struct DevCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate and its private key, as PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// For whom a certificate is.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// What it is called in messages.
    pub name: String,
    /// A node: its certificate is good in both directions. Others only connect.
    pub node: Option<NodeId>,
    /// At which hosts a server is reached: names and IP addresses.
    pub hosts: Vec<String>,
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// The beginning.
    pub from: SystemTime,
    /// The end.
    pub until: SystemTime,
}

impl Validity {
    /// So many days from now on, and the hour before it, for clocks that are late.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "certificates are about wall clocks")]
    pub fn days(days: u32) -> Self {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        Self { from: now - hour, until: now + hour * 24 * days }
    }
}

impl DevCa {
    /// A new one, with a key of its own.
    ///
    /// # Errors
    /// There is no randomness to be had.
    pub fn new(validity: Validity) -> Result<Self, String> {
        let key = KeyPair::generate().map_err(|error| format!("a key can't be made: {error}"))?;
        let mut params = params(&key);
        limit(&mut params, validity);
        let certificate = params.self_signed(&key).map_err(|error| format!("a CA can't be made: {error}"))?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// One that was made before.
    ///
    /// # Errors
    /// This is no private key.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, String> {
        let key = KeyPair::from_pem(key).map_err(|error| format!("this is no private key of a CA: {error}"))?;
        Ok(Self { issuer: Issuer::new(params(&key), key), certificate: certificate.to_owned() })
    }

    /// Its certificate, as PEM: what others need to know whom to trust.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its private key, as PEM: what it takes to make more certificates.
    #[must_use]
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Its certificate by another CA, as PEM.
    #[cfg(test)]
    pub(super) fn signed_by(&self, above: &Issuer<'_, KeyPair>, validity: Validity) -> Result<String, rcgen::Error> {
        let mut params = params(self.issuer.key());
        limit(&mut params, validity);
        params.signed_by(self.issuer.key(), above).map(|certificate| certificate.pem())
    }

    /// Makes a certificate, with a key of its own.
    ///
    /// # Errors
    /// One of the hosts is no name and no address.
    pub fn issue(&self, subject: &Subject, validity: Validity) -> Result<Issued, String> {
        let mut names: Vec<String> = subject.node.map(node_name).into_iter().collect();
        names.extend(subject.hosts.iter().cloned());
        let wrong = |error: rcgen::Error| format!("a certificate for {} can't be made: {error}", names.join(", "));
        let mut params = CertificateParams::new(names.clone()).map_err(wrong)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, &*subject.name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.node.is_some() || !subject.hosts.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        limit(&mut params, validity);
        let key = KeyPair::generate().map_err(wrong)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(wrong)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// What a CA with this key is. It follows from the key, so that a CA can be read again without looking into its certificate, and two of them don't share a
/// name.
fn params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let mark = crc32c::crc32c(key.public_key_raw());
    params.distinguished_name.push(DnType::CommonName, format!("raftkv development CA {mark:08x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn limit(params: &mut CertificateParams, Validity { from, until }: Validity) {
    let at = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Whole seconds: certificates have no others.
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(since.as_secs())
    };
    (params.not_before, params.not_after) = (at(from), at(until));
}
