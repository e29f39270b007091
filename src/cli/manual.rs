//! What shells and `man` want to know of the commands, made from the same definitions that parse them.

use std::path::{Path, PathBuf};

use crate::report::{self, exit};
use crate::schema;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Manual {
    /// JSON Schema of the configuration, the status, the log's lines or the report
    #[command(after_help = "Example:\n  innkeeper schema config >innkeeper.schema.json")]
    Schema {
        #[arg(value_enum)]
        of: schema::Subject,
    },
    /// Completion of commands and flags for a shell
    #[command(after_help = "Example:\n  source <(innkeeper completions bash)")]
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// The manual as roff
    #[command(
        after_help = "Examples:\n  innkeeper man | man -l -\n  innkeeper man log | man -l -\n  innkeeper man --directory /usr/local/share/man/man1"
    )]
    Man {
        /// The page of this command; `policy-suggest` is that of `policy suggest`
        command: Option<String>,
        /// Write all pages into this directory
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        directory: Option<PathBuf>,
    },
}

/// Prints or writes what is wanted; returns the exit status.
pub(super) fn run(wanted: &Manual, mut cli: clap::Command) -> u8 {
    match wanted {
        Manual::Schema { of } => super::print(&schema::text(*of)),
        Manual::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut cli, "innkeeper", &mut script);
            super::print(&String::from_utf8_lossy(&script))
        }
        Manual::Man { directory: Some(directory), .. } => match write(cli, directory) {
            Ok(()) => exit::OK,
            Err(error) => {
                report::last_words(
                    "man",
                    &format!("cannot write the pages into {}: {error}", directory.display()),
                );
                1
            }
        },
        Manual::Man { command, directory: None } => show(cli, command.as_deref()),
    }
}

fn show(cli: clap::Command, command: Option<&str>) -> u8 {
    let name = command.map_or_else(|| "innkeeper".to_owned(), |command| format!("innkeeper-{command}"));
    match pages(cli).into_iter().find(|(page, _)| *page == name) {
        Some((_, text)) => super::print(&String::from_utf8_lossy(&text)),
        None => {
            report::last_words(
                "usage",
                &format!("there is no page {name}; innkeeper --help lists the commands"),
            );
            exit::USAGE
        }
    }
}

/// All pages, called as `man` looks for them.
fn write(cli: clap::Command, directory: &Path) -> std::io::Result<()> {
    for (name, text) in pages(cli) {
        std::fs::write(directory.join(format!("{name}.1")), text)?;
    }
    Ok(())
}

/// The page of the whole, and one for each command that `--help` shows.
fn pages(mut cli: clap::Command) -> Vec<(String, Vec<u8>)> {
    cli.build();
    let mut pages = Vec::new();
    let mut pending = vec![("innkeeper".to_owned(), cli)];
    while let Some((name, command)) = pending.pop() {
        let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
        pending.extend(shown.map(|one| (format!("{name}-{}", one.get_name()), one.clone())));
        let mut text = Vec::new();
        let page = clap_mangen::Man::new(command).title(name.to_uppercase());
        if page.render(&mut text).is_ok() {
            pages.push((name, text));
        }
    }
    pages
}
