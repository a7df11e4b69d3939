//! What the log was told.

use std::fmt::{Debug, Write as _};
use std::sync::{Arc, LazyLock, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

use crate::testing::lock;

/// Is there, and hears nothing. While there is one subscriber alone, `tracing` asks whichever thread comes first to a place that logs whether it has
/// one, and takes a "no" for all threads and for good: what another test does meanwhile would silence this one.
static ANOTHER: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(Log::default()));

/// Catches what this thread logs at level INFO and above, as long as the guard lives.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Begins.
    #[must_use]
    pub fn start(&self) -> tracing::subscriber::DefaultGuard {
        LazyLock::force(&ANOTHER);
        tracing::subscriber::set_default(self.clone())
    }

    /// The lines that hold all of these words. A line is the level, the message, and the fields as `name=value`.
    #[must_use]
    pub fn lines(&self, words: &[&str]) -> Vec<String> {
        lock(&self.0).iter().filter(|line| words.iter().all(|word| line.contains(word))).cloned().collect()
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line { text: format!("{} ", event.metadata().level()), fields: String::new() };
        event.record(&mut line);
        lock(&self.0).push(line.text + &line.fields);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line {
    text: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.text, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_something() {
        tracing::info!("something");
    }

    /// Its places may be reached by other tests as well, which log nowhere.
    #[test]
    fn what_another_thread_logs_nowhere_is_heard_here() {
        let log = Log::default();
        let _on = log.start();
        std::thread::spawn(log_something).join().unwrap();
        log_something();
        assert_eq!(log.lines(&["INFO something"]).len(), 1);
    }
}
