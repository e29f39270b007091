//! The table of settings as text for people: `--help` and `docs/configuration.md`.  (pure)

use std::fmt::Write as _;

use super::{SETTINGS, Setting, sections};
use crate::config::provider::secrets_markdown;

/// The settings for `--help`.
#[must_use]
pub fn help() -> String {
    let mut out = String::from(
        "Settings, as section.key in /etc/innkeeper/innkeeper.toml or as INNKEEPER_SECTION_KEY, which wins:\n",
    );
    let width = SETTINGS.iter().map(|setting| setting.key.len()).max().unwrap_or_default();
    for section in sections() {
        out.push('\n');
        for setting in SETTINGS.iter().filter(|setting| setting.section() == section) {
            help_line(&mut out, setting, width);
        }
    }
    out
}

fn help_line(out: &mut String, setting: &Setting, width: usize) {
    let mut line = format!("  {:width$}  {}", setting.key, setting.help);
    if !setting.default.is_empty() {
        line.push_str(&format!(" [{}]", setting.default.replace('\n', ",")));
    }
    if !setting.aliases.is_empty() {
        line.push_str(&format!(" (also {})", setting.aliases.join(", ")));
    }
    out.push_str(&line);
    out.push('\n');
}

const REFERENCE_HEAD: &str = "\
# Configuration

<!-- Written by `BLESS=1 cargo test --test configuration_reference` from the table in src/config/settings/keys.rs. -->

Every key can be set in `/etc/innkeeper/innkeeper.toml` or by a variable. Of several sources the first of these counts:

1. `INNKEEPER_SECTION_KEY`
2. a variable of other tools that means the same (the column *also*)
3. `/etc/innkeeper/innkeeper.toml`
4. the default

A variable of other tools that is blank counts as not set. An `INNKEEPER_` variable or a key of the file that does not
exist stops the boot, as does every value that can't be read: all problems are reported at once, with exit status 78.
In a variable the items of a list are separated by `,`, `;` or newline; rules by `;` or newline; arguments by newline.

";

const REFERENCE_SECRETS: &str = "\
## Secrets

Secrets never go into `innkeeper.toml`. Of each, the first of these counts, and two that differ are an error:

1. the variable `NAME`: `docker exec … env` shows it to whoever may run that
2. `NAME_FILE`, the path of a file that holds it
3. `/run/secrets/NAME`, where Docker and Kubernetes put secrets: recommended

";

/// `docs/configuration.md`.
#[must_use]
pub fn reference_markdown() -> String {
    let mut out = String::from(REFERENCE_HEAD);
    for section in sections() {
        let heading =
            if section == "repository" { "[[repository]]".to_owned() } else { format!("[{section}]") };
        out.push_str(&format!("## `{heading}`\n\n"));
        out.push_str("| key | what | value | default | variable |\n| --- | --- | --- | --- | --- |\n");
        for setting in SETTINGS.iter().filter(|setting| setting.section() == section) {
            reference_row(&mut out, setting);
        }
        out.push('\n');
        if section == "repository" {
            out.push_str(REPOSITORY_NOTE);
        }
    }
    out.push_str(REFERENCE_SECRETS);
    out.push_str(&secrets_markdown());
    out
}

const REPOSITORY_NOTE: &str = "\
The variables describe one repository: with an address they replace the list of the file, without one they refine its
only entry.

";

fn reference_row(out: &mut String, setting: &Setting) {
    let default = match setting.default {
        "" => "–".to_owned(),
        default => format!("`{}`", default.replace('\n', ", ")),
    };
    let mut variables = format!("`{}`", setting.variable());
    if !setting.aliases.is_empty() {
        variables.push_str(&format!("; also `{}`", setting.aliases.join("`, `")));
    }
    let value = setting.kind.expected().replace('|', "\\|");
    // Writing to a String can't fail.
    writeln!(out, "| `{}` | {} | {value} | {default} | {variables} |", setting.name(), setting.help)
        .unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_key_with_its_default() {
        let help = help();
        assert!(SETTINGS.iter().all(|setting| help.contains(setting.key)));
        assert!(help.contains("[8s]") && help.contains("(also REPO_URL)"), "{help}");
        assert!(SETTINGS.iter().all(|setting| !setting.help.is_empty() && !setting.help.ends_with('.')));
        assert!(help.contains("left to the operator [deny]\n"), "{help}");
    }

    #[test]
    fn the_reference_names_every_variable_and_alias() {
        let reference = reference_markdown();
        for setting in SETTINGS {
            assert!(reference.contains(&setting.variable()), "{}", setting.key);
            assert!(setting.aliases.iter().all(|alias| reference.contains(alias)), "{}", setting.key);
        }
    }
}
