//! Every command in the documents is run, in order, as a reader would, and prints what it is shown to print.

mod blocks;
mod machine;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use blocks::{Block, fits, session};
use machine::{Machine, Told as _};

/// Languages of blocks that are something to do; the others show output, pictures or other programs' text.
const RUNNABLE: [&str; 3] = ["sh", "console", "toml"];
/// As many blocks may be excused, over all documents: what needs the outside world, or is the test's own caller.
const EXCUSED_AT_MOST: usize = 10;

#[test]
fn every_command_in_the_readme_runs() -> Result<()> {
    Document::read("README.md")?.try_all()
}

#[test]
fn every_command_in_the_guide_runs() -> Result<()> {
    Document::read("docs/guide.md")?.try_all()
}

#[test]
fn every_command_in_the_other_documents_runs() -> Result<()> {
    for path in documents()? {
        if !matches!(path.as_str(), "README.md" | "docs/guide.md") {
            Document::read(&path)?.try_all()?;
        }
    }
    Ok(())
}

#[test]
fn few_commands_are_excused_and_each_says_why() -> Result<()> {
    let (mut list, mut excused, mut runnable) = (String::new(), 0, 0);
    for path in documents()? {
        for block in Document::read(&path)?.blocks {
            runnable += 1;
            if let Some(reason) = block.excuse {
                excused += 1;
                writeln!(list, "{path}:{}: {reason}", block.line)?;
                ensure!(reason.len() > 10, "{path}:{}: excused without a reason", block.line);
            }
        }
    }
    println!("{} of {runnable} blocks run, {excused} are excused:\n{list}", runnable - excused);
    ensure!(excused <= EXCUSED_AT_MOST, "{excused} blocks are excused, at most {EXCUSED_AT_MOST} should be:\n{list}");
    Ok(())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The documents that users read, relative to the repository.
fn documents() -> Result<Vec<String>> {
    let mut found = vec!["README.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension().is_some_and(|extension| extension == "md") {
            found.push(format!("docs/{name}"));
        }
    }
    found.sort();
    Ok(found)
}

struct Document {
    path: String,
    blocks: Vec<Block>,
}

impl Document {
    fn read(path: &str) -> Result<Self> {
        let text = std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
        let mut blocks = blocks::blocks(&text).map_err(|what| anyhow::anyhow!("{path}: {what}"))?;
        blocks.retain(|block| RUNNABLE.contains(&block.language.as_str()));
        Ok(Self { path: path.to_owned(), blocks })
    }

    /// Runs the blocks in order. The first that fails ends it, since those after it build on it.
    fn try_all(&self) -> Result<()> {
        let mut machine = None;
        for block in self.blocks.iter().filter(|block| block.excuse.is_none()) {
            if block.anew {
                machine = None;
            }
            if machine.is_none() {
                machine = Some(Machine::set_up()?);
            }
            if let Some(machine) = &machine {
                try_block(machine, block).with_context(|| format!("{}:{}", self.path, block.line))?;
            }
        }
        Ok(())
    }
}

fn try_block(machine: &Machine, block: &Block) -> Result<()> {
    for script in &block.after {
        machine.balancer(script, &[])?.succeeded(script)?;
    }
    if block.language == "toml" {
        machine.check(&block.text)?;
    }
    if let Some(path) = &block.write {
        return machine.put(path, &block.text);
    }
    for host in machine.hosts(block.host.as_deref())? {
        match block.language.as_str() {
            "sh" => {
                let output = machine.run(host, &block.text, &block.variables)?;
                println!("{}{}{}", block.text, output.stdout, output.stderr);
                ensure!(output.code == block.code, "{}", output.told(&block.text, block.code));
            }
            "console" => {
                for typed in session(&block.text) {
                    let output = machine.run(host, &typed.command, &block.variables)?;
                    let all = format!("{}{}", output.stdout, output.stderr);
                    println!("$ {}\n{all:.2000}", typed.command);
                    ensure!(output.code == block.code, "{}", output.told(&typed.command, block.code));
                    fits(&typed.printed, &all)
                        .map_err(|what| anyhow::anyhow!("{}: {what}\nIt printed:\n{all}", typed.command))?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}
