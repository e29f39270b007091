//! Values with a meaning: what was typed, or the default, read as the table says.  (pure)
//!
//! A value that can't be read is reported and stands as its default, so that the rest is still looked at.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::problems::{Problem, shown};
use super::raw::{Place, RawSettings, RawValue};
use super::settings::{Kind, Setting, Word, nearest, setting};
use super::units::{ByteSize, parse_duration};
use super::{ListenPort, Transport};
use crate::dns::name_server::NameServer;

/// The settings of all sources, merged, and what is wrong with them.
#[derive(Debug)]
pub(super) struct Values {
    settings: RawSettings,
    pub(super) problems: Vec<Problem>,
}

/// A value on its way: where it was typed, and for which setting.
pub(super) struct Found {
    pub(super) setting: &'static Setting,
    pub(super) place: Place,
    pub(super) text: String,
}

impl Values {
    #[must_use]
    pub(super) fn new(settings: RawSettings) -> Self {
        Self { settings, problems: Vec::new() }
    }

    /// Whether somebody set it, to something that is not blank.
    #[must_use]
    pub(super) fn is_set(&self, key: &str) -> bool {
        match self.settings.get(key).map(|given| &given.value) {
            Some(RawValue::One(text)) => !text.trim().is_empty(),
            Some(RawValue::Many(items)) => !items.is_empty(),
            None => false,
        }
    }

    /// The variable that a message should name: the one that was used, else ours.
    #[must_use]
    pub(super) fn place(&self, key: &str) -> Place {
        self.settings.get(key).map_or(Place::Default, |given| given.place.clone())
    }

    fn row(&mut self, key: &str) -> Option<&'static Setting> {
        let row = setting(key);
        if row.is_none() {
            self.problems.push(Problem::new(
                key,
                "is not in the table of settings",
                "this is a fault of innkeeper",
            ));
        }
        row
    }

    /// The text of a setting that is not a list.
    pub(super) fn one(&mut self, key: &str) -> Option<Found> {
        let setting = self.row(key)?;
        let (text, place) = match self.settings.get(key) {
            Some(given) => match &given.value {
                RawValue::One(text) => (text.clone(), given.place.clone()),
                RawValue::Many(_) => (String::new(), given.place.clone()),
            },
            None => (setting.default.to_owned(), Place::Default),
        };
        Some(Found { setting, place, text })
    }

    /// The items of a list.
    pub(super) fn many(&mut self, key: &str) -> Vec<Found> {
        let Some(setting) = self.row(key) else { return Vec::new() };
        let items = match self.settings.get(key).map(|given| &given.value) {
            Some(RawValue::Many(items)) => items.clone(),
            Some(RawValue::One(_)) => Vec::new(),
            None => {
                let items = setting.default.split(setting.kind.separators()).filter(|item| !item.is_empty());
                items.map(|item| (item.to_owned(), Place::Default)).collect()
            }
        };
        items
            .into_iter()
            .map(|(text, place)| Found { setting, place, text: text.trim().to_owned() })
            .collect()
    }

    /// Reports a value, showing it.
    pub(super) fn refuse(&mut self, found: &Found, why: impl std::fmt::Display) {
        let why = format!("\"{}\": {why}", shown(&found.text));
        self.report(found, &why);
    }

    /// Reports a value that may hold a password, without showing it.
    pub(super) fn refuse_unseen(&mut self, found: &Found, why: impl std::fmt::Display) {
        self.report(found, &format!("not usable: {why}"));
    }

    fn report(&mut self, found: &Found, why: &str) {
        let setting = found.setting;
        let subject = match &found.place {
            Place::Variable(_) => "is".to_owned(),
            Place::File { .. } | Place::Default => format!("{} is", setting.key),
        };
        let expected = match setting.kind {
            // Every text is one; what is wrong with this one was said.
            Kind::Line | Kind::Text | Kind::Names => String::new(),
            Kind::Choice(_)
            | Kind::Duration { .. }
            | Kind::Size
            | Kind::Number { .. }
            | Kind::Path
            | Kind::Url
            | Kind::Words(_)
            | Kind::Rules
            | Kind::Addresses
            | Kind::Ports
            | Kind::Arguments => format!("; expected {}", setting.kind.expected()),
        };
        let message = format!("{subject} {why}{expected}");
        let next = match (&found.place, setting.example) {
            (_, "") => "unset it".to_owned(),
            (Place::Variable(name), example) => format!("for example {name}={}", in_shell(example)),
            (Place::File { .. } | Place::Default, example) => {
                format!("for example {}", setting.toml_line(example))
            }
        };
        self.problems.push(Problem::new(found.place.to_string(), message, next));
    }

    /// One line of text; `None` if blank.
    pub(super) fn line(&mut self, key: &str, check: impl Fn(&str) -> Option<&'static str>) -> Option<String> {
        let found = self.one(key)?;
        if found.text.trim().is_empty() {
            return None;
        }
        if found.text.chars().any(char::is_control) {
            self.refuse(&found, "it holds a control character");
        } else if found.text.len() > 256 {
            self.refuse(&found, "it is longer than 256 octets");
        } else if let Some(why) = check(&found.text) {
            self.refuse(&found, why);
        } else {
            return Some(found.text.trim().to_owned());
        }
        None
    }

    /// The first of the pairs stands for a value that can't be used.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, first: T, pairs: &[(&str, T)]) -> T {
        let Some(found) = self.one(key) else { return first };
        let text = found.text.trim();
        if let Some((_, value)) = pairs.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let words = if let Kind::Choice(words) = found.setting.kind { words } else { &[] };
        let why = unknown_word(text, words);
        self.refuse(&found, why);
        first
    }

    pub(super) fn duration(&mut self, key: &str) -> Duration {
        let Some(found) = self.one(key) else { return Duration::ZERO };
        let Kind::Duration { min, max } = found.setting.kind else { return Duration::ZERO };
        let read = parse_duration(&found.text, Duration::from_secs(min), Duration::from_secs(max));
        read.unwrap_or_else(|error| {
            self.refuse(&found, error);
            Duration::ZERO
        })
    }

    pub(super) fn size(&mut self, key: &str) -> ByteSize {
        let Some(found) = self.one(key) else { return ByteSize::Bytes(0) };
        ByteSize::parse(&found.text).unwrap_or_else(|error| {
            self.refuse(&found, error);
            ByteSize::Bytes(0)
        })
    }

    pub(super) fn number(&mut self, key: &str) -> u32 {
        let Some(found) = self.one(key) else { return 0 };
        let Kind::Number { max } = found.setting.kind else { return 0 };
        let digits = !found.text.is_empty() && found.text.bytes().all(|byte| byte.is_ascii_digit());
        match found.text.parse::<u32>() {
            Ok(number) if digits && number <= max => number,
            Ok(_) | Err(_) => {
                self.refuse(&found, "it is not such a number");
                0
            }
        }
    }

    /// An absolute path without `..`; `None` if blank.
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        let found = self.one(key)?;
        if found.text.trim().is_empty() {
            return None;
        }
        let path = Path::new(&found.text);
        if found.text.contains('\0') || !path.is_absolute() {
            self.refuse(&found, "it is not absolute");
            return None;
        }
        if path.components().any(|part| part == Component::ParentDir) {
            self.refuse(&found, "it holds \"..\"");
            return None;
        }
        Some(path.to_owned())
    }

    /// Words of a fixed list.
    pub(super) fn words(&mut self, key: &str) -> Vec<String> {
        let mut words = Vec::new();
        for found in self.many(key) {
            let known = if let Kind::Words(known) = found.setting.kind { known } else { &[] };
            if known.iter().any(|word| word.word == found.text) {
                words.push(found.text);
            } else {
                let why = unknown_word(&found.text, known);
                self.refuse(&found, why);
            }
        }
        words
    }

    pub(super) fn name_servers(&mut self, key: &str) -> Vec<NameServer> {
        let mut servers = Vec::new();
        for found in self.many(key) {
            match NameServer::parse(&found.text) {
                Ok(server) => servers.push(server),
                Err(error) => self.refuse(&found, error),
            }
        }
        servers
    }

    pub(super) fn ports(&mut self, key: &str) -> Vec<ListenPort> {
        let mut ports = Vec::new();
        for found in self.many(key) {
            let (number, transport) = found.text.split_once('/').unwrap_or((&found.text, "tcp"));
            let transport = match transport {
                "tcp" => Some(Transport::Tcp),
                "udp" => Some(Transport::Udp),
                _ => None,
            };
            let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            match (number.parse::<u16>().ok().filter(|port| digits && *port != 0), transport) {
                (Some(port), Some(transport)) => ports.push(ListenPort { port, transport }),
                (None, _) => self.refuse(&found, "it is not a port (1 to 65535)"),
                (_, None) => self.refuse(&found, "the transport is neither tcp nor udp"),
            }
        }
        ports
    }

    /// Arguments of a program.
    pub(super) fn arguments(&mut self, key: &str) -> Vec<String> {
        let mut arguments = Vec::new();
        for found in self.many(key) {
            if found.text.contains('\0') {
                self.refuse(&found, "it holds a NUL");
            } else {
                arguments.push(found.text);
            }
        }
        arguments
    }
}

fn unknown_word(text: &str, words: &[Word]) -> String {
    match nearest(text, words.iter().map(|word| word.word)) {
        Some(near) => format!("it is unknown (did you mean {near}?)"),
        None => "it is unknown".to_owned(),
    }
}

/// As it can be pasted behind `export` or `-e`.
fn in_shell(value: &str) -> String {
    let plain = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':' | '%' | ',' | '@' | '=')
    };
    if value.chars().all(plain) {
        return value.to_owned();
    }
    let value = value.replace('\'', "'\\''");
    if value.contains('\n') { format!("$'{}'", value.replace('\n', "\\n")) } else { format!("'{value}'") }
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Found({} at {})", self.setting.key, self.place)
    }
}

#[cfg(test)]
mod tests;
