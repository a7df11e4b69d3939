//! The names of writes that are to take effect once, as requests carry them.

use raftkv::{Once, SessionId};
use tonic::Status;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

/// The metadata key of a write's name: its session, its number, and below which number the session wants no answers any more, as
/// `SESSION/SEQUENCE/ANSWERED`.
pub const ONCE: &str = "raftkv-once";

/// How a request says it.
#[must_use]
pub(crate) fn encode(once: Once) -> MetadataValue<Ascii> {
    let Once { session, sequence, answered } = once;
    let text = format!("{}/{sequence}/{answered}", session.0);
    MetadataValue::try_from(text).unwrap_or_else(|_| MetadataValue::from_static(""))
}

/// The name that a request carries, if any.
pub(super) fn of(metadata: &MetadataMap) -> Result<Option<Once>, Status> {
    let Some(value) = metadata.get(ONCE) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse);
    parsed.map(Some).ok_or_else(|| {
        Status::invalid_argument(format!(
            "{ONCE}: {value:?} is not SESSION/SEQUENCE/ANSWERED, three numbers of which the last is at most the second"
        ))
    })
}

fn parse(text: &str) -> Option<Once> {
    let mut numbers = text.split('/').map(|number| number.parse().ok());
    let (session, sequence, answered) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let once = Once { session: SessionId(session), sequence, answered };
    (numbers.next().is_none() && answered <= sequence).then_some(once)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_text(text: &str) -> Result<Option<Once>, Status> {
        let mut metadata = MetadataMap::new();
        metadata.insert(ONCE, text.parse().unwrap());
        of(&metadata)
    }

    #[test]
    fn a_name_survives_its_way() {
        let once = Once { session: SessionId(u64::MAX), sequence: 12, answered: 7 };
        let mut metadata = MetadataMap::new();
        assert_eq!(of(&metadata).unwrap(), None);
        metadata.insert(ONCE, encode(once));
        assert_eq!(of(&metadata).unwrap(), Some(once));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for text in ["", "1/2", "1/2/3", "1/2/x", "1/2/1/1", "-1/2/1", "1/99999999999999999999/1"] {
            let refused = of_text(text).unwrap_err();
            assert!(refused.code() == tonic::Code::InvalidArgument && refused.message().contains(ONCE), "{text}");
        }
    }
}
