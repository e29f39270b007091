//! What was typed: the text of `innkeeper.toml` as values that still know their line, with every unknown key and
//! every wrong type reported. What the values mean is for `config::values`.  (pure)

use std::collections::BTreeMap;
use std::fmt;

use toml::Spanned;
use toml::de::{DeArray, DeString, DeTable, DeValue};

use super::problems::{Problem, shown};
use super::settings::{SETTINGS, Setting, TomlType, nearest, sections};

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Variable(String),
    File {
        path: String,
        line: usize,
    },
    /// Nowhere: it is the default of the setting.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line } => write!(f, "{path}:{line}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value as it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RawValue {
    One(String),
    Many(Vec<(String, Place)>),
}

/// A value and where it was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) place: Place,
    pub(super) value: RawValue,
}

/// The values of one source, by key.
pub(super) type RawSettings = BTreeMap<&'static str, Given>;

/// One `[[repository]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RawRepository {
    pub(super) place: Place,
    pub(super) settings: RawSettings,
}

/// What a file says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct RawConfig {
    pub(super) settings: RawSettings,
    pub(super) repositories: Vec<RawRepository>,
}

/// Reads the text of `innkeeper.toml`. A text with errors of syntax gives nothing else: what a parser guesses after
/// an error would only be reported as further errors that are none.
#[must_use]
pub(super) fn read_toml(text: &str, path: &str) -> (RawConfig, Vec<Problem>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { text, path, config: RawConfig::default(), problems: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let offset = error.span().map_or(0, |span| span.start);
        reader.report(offset, format!("is not TOML: {}", error.message()), "mend the line");
    }
    if errors.is_empty() {
        reader.document(document.get_ref());
    }
    // In the order of the file, not of the parser's map.
    reader.problems.sort_by_key(|(offset, _)| *offset);
    (reader.config, reader.problems.into_iter().map(|(_, problem)| problem).collect())
}

struct Reader<'t> {
    text: &'t str,
    path: &'t str,
    config: RawConfig,
    problems: Vec<(usize, Problem)>,
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Place::File { path: self.path.to_owned(), line }
    }

    fn report(&mut self, offset: usize, message: impl Into<String>, next: impl Into<String>) {
        let problem = Problem::new(self.place(offset).to_string(), message, next);
        self.problems.push((offset, problem));
    }

    fn document(&mut self, document: &DeTable<'_>) {
        for (key, value) in document {
            let (name, offset) = (key.get_ref().as_ref(), key.span().start);
            if !sections().any(|section| section == name) {
                self.unknown_section(name, offset, value.get_ref());
                continue;
            }
            match (name, value.get_ref()) {
                ("repository", DeValue::Array(tables)) => self.repositories(tables),
                ("repository", _) => {
                    self.report(offset, "repository is a list of tables", "write [[repository]]");
                }
                (_, DeValue::Table(table)) => {
                    let settings = self.section(name, table);
                    self.config.settings.extend(settings);
                }
                (_, _) => {
                    self.report(
                        offset,
                        format!("{name} is a section, not a value"),
                        format!("write [{name}]"),
                    );
                }
            }
        }
    }

    fn unknown_section(&mut self, name: &str, offset: usize, value: &DeValue<'_>) {
        let key = SETTINGS.iter().find(|setting| setting.name() == name);
        let next = match (key, nearest(name, sections())) {
            (Some(setting), _) if !matches!(value, DeValue::Table(_)) => {
                format!("did you mean {}? write it below [{}]", setting.key, setting.section())
            }
            (_, Some(section)) => format!("did you mean [{section}]?"),
            (_, None) => format!("the sections are {}", sections().collect::<Vec<_>>().join(", ")),
        };
        let what = if matches!(value, DeValue::Table(_) | DeValue::Array(_)) { "section" } else { "key" };
        self.report(offset, format!("unknown {what} \"{}\"", shown(name)), next);
    }

    fn repositories(&mut self, tables: &DeArray<'_>) {
        for table in tables.iter() {
            let offset = table.span().start;
            if let DeValue::Table(entries) = table.get_ref() {
                let settings = self.section("repository", entries);
                let place = self.place(offset);
                self.config.repositories.push(RawRepository { place, settings });
            } else {
                self.report(offset, "repository is a list of tables", "write [[repository]]");
            }
        }
    }

    fn section(&mut self, section: &str, table: &DeTable<'_>) -> RawSettings {
        let mut settings = RawSettings::new();
        for (key, value) in table {
            let wanted = format!("{section}.{}", key.get_ref());
            match SETTINGS.iter().find(|setting| setting.key == wanted) {
                Some(setting) => {
                    if let Some(given) = self.value(setting, value) {
                        settings.insert(setting.key, given);
                    }
                }
                None => self.unknown_key(section, key),
            }
        }
        settings
    }

    fn unknown_key(&mut self, section: &str, key: &Spanned<DeString<'_>>) {
        let (name, offset) = (key.get_ref().as_ref(), key.span().start);
        let in_section = || SETTINGS.iter().filter(|setting| setting.section() == section);
        let elsewhere = SETTINGS.iter().find(|setting| setting.name() == name);
        let next = if let Some(near) = nearest(name, in_section().map(Setting::name)) {
            format!("did you mean {section}.{near}?")
        } else if let Some(setting) = elsewhere {
            format!("did you mean {}?", setting.key)
        } else if section == "secrets" {
            "secrets never go into this file: put the value into /run/secrets/NAME".to_owned()
        } else {
            format!("[{section}] has {}", in_section().map(Setting::name).collect::<Vec<_>>().join(", "))
        };
        self.report(offset, format!("unknown key \"{section}.{}\"", shown(name)), next);
    }

    fn value(&mut self, setting: &Setting, value: &Spanned<DeValue<'_>>) -> Option<Given> {
        let place = self.place(value.span().start);
        let raw = match (setting.kind.toml_type(), value.get_ref()) {
            (TomlType::String, DeValue::String(text)) => RawValue::One(text.to_string()),
            (TomlType::Integer, DeValue::Integer(number)) => RawValue::One(number.to_string()),
            (TomlType::Strings, DeValue::Array(items)) => RawValue::Many(self.strings(setting, items)?),
            (TomlType::String | TomlType::Integer | TomlType::Strings, given) => {
                self.wrong_type(setting, value.span().start, given);
                return None;
            }
        };
        Some(Given { place, value: raw })
    }

    fn strings(&mut self, setting: &Setting, items: &DeArray<'_>) -> Option<Vec<(String, Place)>> {
        let mut texts = Vec::new();
        let mut good = true;
        for item in items.iter() {
            if let DeValue::String(text) = item.get_ref() {
                texts.push((text.to_string(), self.place(item.span().start)));
            } else {
                self.wrong_type(setting, item.span().start, item.get_ref());
                good = false;
            }
        }
        good.then_some(texts)
    }

    fn wrong_type(&mut self, setting: &Setting, offset: usize, given: &DeValue<'_>) {
        let wanted = match setting.kind.toml_type() {
            TomlType::String => "a string",
            TomlType::Integer => "an integer",
            TomlType::Strings => "an array of strings",
        };
        let message = format!("{} is {}; expected {wanted}", setting.key, type_name(given));
        let next = match setting.example {
            "" => String::new(),
            example => format!("for example {}", setting.toml_line(example)),
        };
        self.report(offset, message, next);
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (RawConfig, Vec<String>) {
        let (config, problems) = read_toml(text, "i.toml");
        (config, problems.iter().map(ToString::to_string).collect())
    }

    fn problems(text: &str) -> Vec<String> {
        read(text).1
    }

    #[test]
    fn values_know_their_lines() {
        let text = "\u{feff}# a comment\r\n[session]\r\nstop_timeout = \"9s\"\r\n[network]\r\nallow = [\r\n  \"a.example\",\r\n  \"b.example\",\r\n]\r\n";
        let (config, problems) = read(text);
        assert_eq!(problems, [] as [String; 0]);
        let at = |line| Place::File { path: "i.toml".to_owned(), line };
        let timeout = &config.settings["session.stop_timeout"];
        assert_eq!(timeout, &Given { place: at(3), value: RawValue::One("9s".to_owned()) });
        let items = vec![("a.example".to_owned(), at(6)), ("b.example".to_owned(), at(7))];
        assert_eq!(config.settings["network.allow"].value, RawValue::Many(items));
    }

    #[test]
    fn repositories_are_a_list_and_integers_may_be_written_in_any_base() {
        let (config, problems) = read(
            "[[repository]]\nurl = \"https://a.example/x\"\n[[repository]]\nurl = \"u\"\ndepth = 0x10\n",
        );
        assert_eq!(problems, [] as [String; 0]);
        assert_eq!(config.repositories.len(), 2);
        let depth = &config.repositories[1].settings["repository.depth"].value;
        assert_eq!(depth, &RawValue::One("0x10".to_owned()));
    }

    #[test]
    fn every_unknown_key_and_wrong_type_is_reported_in_the_order_of_the_file() {
        let text = "[session]\nstop_timout = \"8s\"\nstop_timeout = 8\nmode = true\n[sesion]\nx = 1\n[network]\nallow = \"a\"\nprofiles = [1, \"npm\", 2.5]\nworkspace_size = \"1G\"\n";
        assert_eq!(
            problems(text),
            [
                "i.toml:2: unknown key \"session.stop_timout\"\n   next: did you mean session.stop_timeout?",
                "i.toml:3: session.stop_timeout is an integer; expected a string\n   next: for example stop_timeout = \"8s\"",
                "i.toml:4: session.mode is a boolean; expected a string\n   next: for example mode = \"tmux\"",
                "i.toml:5: unknown section \"sesion\"\n   next: did you mean [session]?",
                "i.toml:8: network.allow is a string; expected an array of strings\n   next: for example allow = [\"docs.example.org\", \"git.corp.example:443,7999 private\"]",
                "i.toml:9: network.profiles is an integer; expected an array of strings\n   next: for example profiles = [\"claude\", \"github\", \"npm\", \"pypi\", \"crates\", \"go\", \"debian\"]",
                "i.toml:9: network.profiles is a float; expected an array of strings\n   next: for example profiles = [\"claude\", \"github\", \"npm\", \"pypi\", \"crates\", \"go\", \"debian\"]",
                "i.toml:10: unknown key \"network.workspace_size\"\n   next: did you mean filesystem.workspace_size?",
            ]
        );
    }

    #[test]
    fn sections_and_values_are_not_confused() {
        for (text, expected) in [
            ("session = 1", "i.toml:1: session is a section, not a value\n   next: write [session]"),
            (
                "[repository]\nurl = \"x\"",
                "i.toml:1: repository is a list of tables\n   next: write [[repository]]",
            ),
            ("repository = [1]", "i.toml:1: repository is a list of tables\n   next: write [[repository]]"),
            (
                "stop_timeout = \"8s\"",
                "i.toml:1: unknown key \"stop_timeout\"\n   next: did you mean session.stop_timeout? write it below [session]",
            ),
            (
                "[secrets]\nGH_TOKEN = \"canary\"",
                "i.toml:2: unknown key \"secrets.GH_TOKEN\"\n   next: secrets never go into this file: put the value into /run/secrets/NAME",
            ),
            (
                "[log]\nzzzzzzzz = 1979-05-27",
                "i.toml:2: unknown key \"log.zzzzzzzz\"\n   next: [log] has format, file, file_size",
            ),
            (
                "[zzzzzzzzzz]",
                "i.toml:1: unknown section \"zzzzzzzzzz\"\n   next: the sections are model, secrets, network, filesystem, repository, session, agent, claude, telemetry, tls, log, notices, boot, identity",
            ),
            (
                "[log]\nformat = {}",
                "i.toml:2: log.format is a table; expected a string\n   next: for example format = \"text\"",
            ),
            (
                "[log]\nformat = []",
                "i.toml:2: log.format is an array; expected a string\n   next: for example format = \"text\"",
            ),
            (
                "[log]\nformat = 1979-05-27",
                "i.toml:2: log.format is a date; expected a string\n   next: for example format = \"text\"",
            ),
        ] {
            assert_eq!(problems(text), [expected]);
        }
    }

    #[test]
    fn errors_of_syntax_have_their_line_and_hide_the_rest() {
        let found = problems("[session]\nmode = \"tmux\nunknown = 1\n[log\nformat = \"json\"\n");
        assert!(found[0].starts_with("i.toml:2: is not TOML: "), "{found:?}");
        assert!(found.iter().any(|problem| problem.starts_with("i.toml:4: is not TOML: ")), "{found:?}");
        assert!(found.iter().all(|problem| !problem.contains("unknown key")), "{found:?}");
        let twice = problems("[log]\nformat = \"text\"\nformat = \"json\"\n");
        assert!(twice[0].starts_with("i.toml:3: is not TOML: duplicate key"), "{twice:?}");
    }

    #[test]
    fn places_are_shown_as_people_look_for_them() {
        assert_eq!(Place::Variable("X".to_owned()).to_string(), "X");
        assert_eq!(Place::File { path: "f".to_owned(), line: 3 }.to_string(), "f:3");
        assert_eq!(Place::Default.to_string(), "default");
    }
}
