//! One terminal for many processes.

use std::io::{IsTerminal, Write};

/// Prints whole lines to stdout. A reader that has left is no reason to stop the cluster.
#[derive(Debug)]
pub(super) struct Terminal {
    colours: bool,
}

/// Cyan, yellow, magenta, green, blue, red.
const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];

impl Terminal {
    pub(super) fn stdout() -> Self {
        Self { colours: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    /// A line of a node.
    pub(super) fn line(&self, node: u64, text: &str) {
        write(&prefixed(self.colours, node, text));
    }

    /// A line of the cluster command itself.
    pub(super) fn say(&self, text: &str) {
        if self.colours {
            write(&format!("\x1b[1m== {text}\x1b[0m"));
        } else {
            write(&format!("== {text}"));
        }
    }
}

fn prefixed(colours: bool, node: u64, text: &str) -> String {
    if colours {
        let colour = COLOURS[(node.saturating_sub(1) % COLOURS.len() as u64) as usize];
        format!("\x1b[{colour}mn{node} |\x1b[0m {text}")
    } else {
        format!("n{node} | {text}")
    }
}

fn write(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Who leads, and how to see that it does not matter.
pub(super) fn leader_line(node: u64, term: u64, pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("n{node} leads term {term} (to see another one take over: kill -9 {pid})"),
        None => format!("n{node} leads term {term}"),
    }
}

/// A command that a shell reads as these words: each is quoted, if it has to be.
pub(super) fn shell_line(words: impl IntoIterator<Item = String>) -> String {
    words.into_iter().map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    // Nothing has a meaning within single quotes, save the quote itself.
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_a_shell_is_read_as_the_words_it_was_made_of() {
        let words =
            ["server", "--data", "my data/n1", "1=127.0.0.1:80,2=b:1", "it's", "", "$HOME", "a\\b", "`x`", "~", "*"];
        let line = shell_line(words.map(str::to_owned));
        assert!(line.starts_with("server --data 'my data/n1' 1=127.0.0.1:80,2=b:1 "), "{line}");
        // Asks a real shell.
        let output = std::process::Command::new("sh").arg("-c").arg(format!("printf '%s\\n' {line}")).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().lines().collect::<Vec<_>>(), words);
    }

    #[test]
    fn lines_carry_their_node() {
        assert_eq!(prefixed(false, 2, "hello"), "n2 | hello");
        assert_eq!(prefixed(true, 1, "hello"), "\x1b[36mn1 |\x1b[0m hello");
        assert_ne!(prefixed(true, 1, ""), prefixed(true, 7, ""));
        assert!(
            leader_line(2, 3, Some(77)).starts_with("n2 leads term 3") && leader_line(2, 3, Some(77)).contains("77")
        );
    }
}
