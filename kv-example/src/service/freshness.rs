//! How fresh a read must be. etcd's requests say only whether they are serializable: how a linearizable one becomes so is told by the
//! server's configuration, or by a header of the request.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use raftkv::Consistency;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

/// The metadata key by which a request that is not serializable chooses between `linearizable` and `lease`.
pub const CONSISTENCY: &str = "raftkv-consistency";

/// What a read reflects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Freshness {
    /// Every write that was answered before it began: the leader asks a quorum
    Linearizable,
    /// The same, as long as clocks go as --lease-drift-ms says: the leader answers by its clock, or asks a quorum if it has no lease
    Lease,
    /// What the node has, possibly stale: works without a quorum
    Stale,
}

impl Freshness {
    /// The value of the header [`CONSISTENCY`]; none where etcd's own flag says it.
    #[must_use]
    pub fn header(self) -> Option<&'static str> {
        match self {
            Self::Linearizable => Some("linearizable"),
            Self::Lease => Some("lease"),
            Self::Stale => None,
        }
    }

    /// What a request asks for, at a server that answers by its lease whoever does not say.
    pub(super) fn asked(serializable: bool, metadata: &MetadataMap, lease_reads: bool) -> Result<Self, Status> {
        if serializable {
            return Ok(Self::Stale);
        }
        match metadata.get(CONSISTENCY) {
            None if lease_reads => Ok(Self::Lease),
            None => Ok(Self::Linearizable),
            Some(value) => value.to_str().unwrap_or_default().parse().map_err(|reason: String| {
                Status::new(Code::InvalidArgument, format!("etcdserver: {CONSISTENCY}: {reason}"))
            }),
        }
    }
}

impl FromStr for Freshness {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "linearizable" => Ok(Self::Linearizable),
            "lease" => Ok(Self::Lease),
            _ => Err("must be `linearizable` or `lease`; what may be stale is asked for by `serializable`".into()),
        }
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.header().unwrap_or("stale"))
    }
}

impl From<Freshness> for Consistency {
    fn from(freshness: Freshness) -> Self {
        match freshness {
            Freshness::Linearizable => Self::Linearizable,
            Freshness::Lease => Self::Lease,
            Freshness::Stale => Self::Stale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_says_how_fresh_a_read_is_and_else_the_server() {
        let asked = |serializable, header: Option<&'static str>, lease_reads| {
            let mut metadata = MetadataMap::new();
            if let Some(header) = header {
                metadata.insert(CONSISTENCY, header.parse().expect("ascii"));
            }
            Freshness::asked(serializable, &metadata, lease_reads).map_err(|status| status.code())
        };
        assert_eq!(asked(false, None, false), Ok(Freshness::Linearizable));
        assert_eq!(asked(false, None, true), Ok(Freshness::Lease));
        assert_eq!(asked(true, None, true), Ok(Freshness::Stale));
        for freshness in [Freshness::Linearizable, Freshness::Lease] {
            assert_eq!(asked(false, freshness.header(), freshness == Freshness::Linearizable), Ok(freshness));
        }
        for wrong in ["", "stale", "Lease"] {
            assert_eq!(asked(false, Some(wrong), true), Err(Code::InvalidArgument), "{wrong}");
        }
    }
}
