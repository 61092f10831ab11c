//! Fenced blocks of a Markdown document, and what the comment before one says about running it.
//!
//! A comment right before a block, which no reader sees, has instructions separated by semicolons:
//!
//! - `run: on HOST`: on this host instead of the balancer (`client`, `backends` for each of them, or one's name)
//! - `run: with NAME=VALUE`: with this variable, which a reader would have set or another program would
//! - `run: exits N`: the last command's exit code
//! - `run: write PATH`: the block is what this file says
//! - `run: after SCRIPT`: first this, on the balancer: what the text has said in words
//! - `run: anew`: on a new machine
//! - `not run: REASON`

use std::path::PathBuf;

/// One fenced block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    /// The line of its opening fence, from 1.
    pub(crate) line: usize,
    /// The fence's word: `sh`, `console`, `toml` or another.
    pub(crate) language: String,
    pub(crate) text: String,
    /// Why it cannot be run, where it cannot.
    pub(crate) excuse: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) code: i32,
    pub(crate) write: Option<PathBuf>,
    pub(crate) after: Vec<String>,
    pub(crate) anew: bool,
}

/// A command of a `console` block, and what the document says that it prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    pub(crate) command: String,
    pub(crate) printed: Vec<String>,
}

/// All blocks of a document. An instruction that is not known is an error: it would be a test that was not made.
pub(crate) fn blocks(document: &str) -> Result<Vec<Block>, String> {
    let mut found = Vec::new();
    let mut next = Block::default();
    let mut lines = document.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let bare = line.trim();
        if let Some(rest) = bare.strip_prefix("<!--") {
            let mut comment = rest.to_owned();
            while !comment.contains("-->") {
                let (_, more) = lines.next().ok_or_else(|| format!("line {}: a comment without an end", index + 1))?;
                comment.push('\n');
                comment.push_str(more);
            }
            instruct(&mut next, comment.trim_end().trim_end_matches("-->").trim())
                .map_err(|what| format!("line {}: {what}", index + 1))?;
        } else if let Some(language) = bare.strip_prefix("```") {
            let indent = line.len() - line.trim_start().len();
            let mut block = std::mem::take(&mut next);
            block.line = index + 1;
            language.clone_into(&mut block.language);
            for (_, line) in lines.by_ref().take_while(|(_, line)| line.trim() != "```") {
                block.text.push_str(line.get(indent..).unwrap_or_default());
                block.text.push('\n');
            }
            found.push(block);
        } else if !bare.is_empty() {
            next = Block::default();
        }
    }
    Ok(found)
}

fn instruct(block: &mut Block, comment: &str) -> Result<(), String> {
    if let Some(reason) = comment.strip_prefix("not run:") {
        block.excuse = Some(reason.trim().to_owned());
        return Ok(());
    }
    let Some(instructions) = comment.strip_prefix("run:") else { return Ok(()) };
    if let Some(script) = instructions.trim().strip_prefix("after ") {
        block.after.push(script.to_owned());
        return Ok(());
    }
    for instruction in instructions.split(';').map(str::trim) {
        let (word, rest) = instruction.split_once(' ').unwrap_or((instruction, ""));
        match word {
            "on" => block.host = Some(rest.to_owned()),
            "with" => {
                let (name, value) = rest.split_once('=').ok_or("`with NAME=VALUE`")?;
                block.variables.push((name.to_owned(), value.to_owned()));
            }
            "exits" => block.code = rest.parse().map_err(|_| format!("`exits {rest}`"))?,
            "write" => block.write = Some(rest.into()),
            "anew" => block.anew = true,
            _ => return Err(format!("no such instruction: {instruction}")),
        }
    }
    Ok(())
}

/// The commands of a `console` block: lines behind a prompt, `$ ` or `# `, with those that a backslash joins to them.
pub(crate) fn session(text: &str) -> Vec<Typed> {
    let mut typed: Vec<Typed> = Vec::new();
    let mut joined = false;
    for line in text.lines() {
        if let Some(command) = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# ")) {
            typed.push(Typed { command: command.to_owned(), printed: Vec::new() });
        } else if let Some(last) = typed.last_mut() {
            if joined {
                last.command.push('\n');
                last.command.push_str(line);
            } else {
                last.printed.push(line.to_owned());
            }
        }
        joined = line.ends_with('\\') && typed.last().is_some_and(|last| last.printed.is_empty());
    }
    typed
}

/// Whether a command printed what the document shows: the lines in this order, words for words, where a word with digits
/// stands for any with digits, and `…` for the rest of a line or for lines.
pub(crate) fn fits(shown: &[String], printed: &str) -> Result<(), String> {
    let mut lines = printed.lines();
    for line in shown.iter().filter(|line| !matches!(line.trim(), "" | "…")) {
        if !lines.any(|printed| line_fits(line, printed)) {
            return Err(format!("nothing printed is like the line\n{line}"));
        }
    }
    Ok(())
}

fn line_fits(shown: &str, printed: &str) -> bool {
    let mut words = printed.split_whitespace();
    for word in shown.split_whitespace() {
        if let Some(begun) = word.strip_suffix('…') {
            return begun.is_empty() || words.next().is_some_and(|other| other.starts_with(begun));
        }
        let has_digit = |word: &str| word.contains(|c: char| c.is_ascii_digit());
        let same = |other: &str| other == word || has_digit(word) && has_digit(other);
        if !words.next().is_some_and(same) {
            return false;
        }
    }
    words.next().is_none()
}

#[test]
fn blocks_and_their_instructions_are_found() {
    let document = "Text\n<!-- run: on client; with A=b c; exits 3 -->\n\n```sh\nls\n```\nMore\n\n- x\n  ```toml\n  a = 1\n  ```\n\
                    <!-- not run: why -->\n```sh\nrm\n```\n<!-- a remark -->\n<!-- run: after x;\ny -->\n```console\n$ z\n```\n";
    let found = blocks(document).unwrap();
    assert_eq!(found.len(), 4);
    let (first, last) = (&found[0], &found[3]);
    assert_eq!((first.line, first.text.as_str(), first.code), (4, "ls\n", 3));
    assert_eq!(first.host.as_deref(), Some("client"));
    assert_eq!(first.variables, [("A".to_owned(), "b c".to_owned())]);
    assert_eq!((found[1].text.as_str(), &found[1].host), ("a = 1\n", &None));
    assert_eq!(found[2].excuse.as_deref(), Some("why"));
    assert_eq!(last.after, ["x;\ny"]);
    assert!(blocks("<!-- run: onn client -->\n").is_err());
}

#[test]
fn sessions_are_compared_by_their_shape() {
    let typed = session("$ ebb drain \\\n  web/a\nweb/a: drained 3 of 4 …\n$ true\n");
    assert_eq!(typed.len(), 2);
    assert_eq!(typed[0].command, "ebb drain \\\n  web/a");
    assert_eq!(fits(&typed[0].printed, "hello\nweb/a: drained 17 of 17 flows\n"), Ok(()));
    assert!(fits(&typed[0].printed, "web/a: drained none of 17 flows\n").is_err());
    let lines = ["b 1".to_owned(), "a 1".to_owned()];
    assert!(fits(&lines, "a 1\nb 2\n").is_err(), "the order counts");
}
