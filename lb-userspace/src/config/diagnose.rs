//! Turns what the TOML reader says into a line that names the place, the mistake and the likely cure.

use std::{fmt, ops::Range};

use serde::de::DeserializeOwned;

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// What is wrong, in one line.
    pub message: String,
}

impl Mistake {
    /// A mistake at this place in this text.
    pub fn at(text: &str, span: Range<usize>, message: impl Into<String>) -> Self {
        let (line, column) = place(text, span.start);
        Self { line, column, message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for Mistake {}

/// Reads a value, saying where and what if that fails.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, Mistake> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let span = error.span().unwrap_or(0..0);
        Mistake::at(text, span, reword(error.message()))
    })
}

/// The known word closest to a misspelt one, when one is close enough to be meant.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1) + 1;
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Line and column of a byte offset.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    let column = before[line_start..].chars().count() + 1;
    (line, column)
}

/// Serde's fixed phrases in the words of this program; anything else is passed on as it is.
fn reword(message: &str) -> String {
    if let Some((key, known)) = unknown(message, "unknown field `") {
        return with_hint(format!("unknown key \"{key}\""), key, &known);
    }
    if let Some((value, known)) = unknown(message, "unknown variant `") {
        return with_hint(format!("unknown value \"{value}\""), value, &known);
    }
    if let Some(key) = quoted(message, "missing field `") {
        return format!("missing key \"{key}\"");
    }
    if let Some(key) = quoted(message, "duplicate field `") {
        return format!("duplicate key \"{key}\"");
    }
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    line.replace('`', "\"")
}

fn with_hint(what: String, word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(hint) => format!("{what}, did you mean \"{hint}\"?"),
        None if known.is_empty() => what,
        None => format!("{what}, expected one of: {}", known.join(", ")),
    }
}

fn quoted<'a>(message: &'a str, opening: &str) -> Option<&'a str> {
    message.strip_prefix(opening)?.split('`').next()
}

/// Splits serde's "unknown … `word`, expected one of `a`, `b`" into the word and what was expected.
fn unknown<'a>(message: &'a str, opening: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = message.strip_prefix(opening)?;
    let (word, rest) = rest.split_once('`')?;
    let known = rest.split('`').skip(1).step_by(2).collect();
    Some((word, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Doc {
        #[serde(rename = "service")]
        _service: Vec<Entry>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        #[serde(rename = "name")]
        _name: String,
        #[serde(rename = "vip")]
        _vip: String,
        #[serde(rename = "mode")]
        _mode: Option<Mode>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Native,
        Generic,
    }

    fn said(text: &str) -> String {
        read::<Doc>(text).expect_err("the text is wrong").to_string()
    }

    #[test]
    fn an_unknown_key_gets_the_nearest_name() {
        assert_eq!(
            said("[[service]]\nname = \"web\"\nvipp = \"x\"\n"),
            "line 3, column 1: unknown key \"vipp\", did you mean \"vip\"?"
        );
    }

    #[test]
    fn a_key_like_no_other_gets_the_list() {
        assert_eq!(
            said("[[service]]\nname = \"web\"\n  colour = 1\n"),
            "line 3, column 3: unknown key \"colour\", expected one of: name, vip, mode"
        );
    }

    #[test]
    fn a_missing_key_is_named_at_its_table() {
        assert_eq!(said("\n[[service]]\nname = \"web\"\n"), "line 2, column 1: missing key \"vip\"");
    }

    #[test]
    fn an_unknown_word_gets_the_nearest() {
        assert_eq!(
            said("[[service]]\nname = \"w\"\nvip = \"v\"\nmode = \"nativ\"\n"),
            "line 4, column 8: unknown value \"nativ\", did you mean \"native\"?"
        );
    }

    #[test]
    fn a_wrong_type_is_placed() {
        assert_eq!(said("[[service]]\nname = 3\n"), "line 2, column 8: invalid type: integer \"3\", expected a string");
    }

    #[test]
    fn broken_syntax_is_one_line() {
        let line = said("[[service]\nname = 3\n");
        assert!(line.starts_with("line 1, column "), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn far_words_are_not_suggested() {
        assert_eq!(nearest("x", ["vip", "name"]), None);
        assert_eq!(nearest("drain_timout", ["drain_timeout", "name"]), Some("drain_timeout"));
    }
}
