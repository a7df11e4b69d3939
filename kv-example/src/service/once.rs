//! The names of writes that are to take effect once, as requests carry them.

use raftkv::{Once, SessionId};
use tonic::Status;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// The metadata key of a write's name: its session, its number, and below which number the session wants no answers any more, as
/// `SESSION/SEQUENCE/ANSWERED`, and `SESSION/SEQUENCE/ANSWERED/PROOF` in a session that a user has opened.
pub const ONCE: &str = "raftkv-once";

/// A write's name as a request says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) once: Once,
    /// What shows that the session is the user's.
    pub(crate) proof: Option<String>,
}

/// How a request says it.
#[must_use]
pub(crate) fn encode(once: Once, proof: &str) -> MetadataValue<Ascii> {
    let Once { session, sequence, answered } = once;
    let separator = if proof.is_empty() { "" } else { "/" };
    let text = format!("{}/{sequence}/{answered}{separator}{proof}", session.0);
    MetadataValue::try_from(text).unwrap_or_else(|_| MetadataValue::from_static(""))
}

/// The name that a request carries, if any.
pub(super) fn of(metadata: &MetadataMap) -> Result<Option<Named>, Status> {
    let Some(value) = metadata.get(ONCE) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse);
    parsed.map(Some).ok_or_else(|| {
        Status::invalid_argument(format!(
            "{ONCE}: {value:?} is not SESSION/SEQUENCE/ANSWERED, three numbers of which the last is at most the second, and a user's session's proof \
             behind them"
        ))
    })
}

fn parse(text: &str) -> Option<Named> {
    let mut parts = text.split('/');
    let mut number = || parts.next()?.parse().ok();
    let (session, sequence, answered) = (number()?, number()?, number()?);
    let once = Once { session: SessionId(session), sequence, answered };
    let proof = parts.next().map(str::to_owned);
    let sound = parts.next().is_none() && answered <= sequence && proof.as_ref().is_none_or(|proof| !proof.is_empty());
    sound.then_some(Named { once, proof })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_text(text: &str) -> Result<Option<Named>, Status> {
        let mut metadata = MetadataMap::new();
        metadata.insert(ONCE, text.parse().unwrap());
        of(&metadata)
    }

    #[test]
    fn a_name_survives_its_way() {
        let once = Once { session: SessionId(u64::MAX), sequence: 12, answered: 7 };
        let mut metadata = MetadataMap::new();
        assert_eq!(of(&metadata).unwrap(), None);
        for proof in [None, Some("00ff".to_owned())] {
            metadata.insert(ONCE, encode(once, proof.as_deref().unwrap_or("")));
            assert_eq!(of(&metadata).unwrap(), Some(Named { once, proof }));
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for text in ["", "1/2", "1/2/3", "1/2/x", "1/2/1/", "1/2/1/a/b", "-1/2/1", "1/99999999999999999999/1"] {
            let refused = of_text(text).unwrap_err();
            assert!(refused.code() == tonic::Code::InvalidArgument && refused.message().contains(ONCE), "{text}");
        }
    }
}
