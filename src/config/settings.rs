//! The one table of settings: what can be configured, how it is written, what it is if nobody says.  (pure)
//!
//! Parsing, `--help`, `docs/configuration.md` and every error's "expected" come from here.

pub use keys::{PROTECTIONS, SETTINGS};
pub use reference::{help, reference_markdown};

mod keys;
mod reference;

/// How the value of a setting is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One line of text.
    Line,
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [Word]),
    /// A duration with its unit, between two numbers of seconds.
    Duration { min: u64, max: u64 },
    /// An amount of memory, or a share of the limit.
    Size,
    /// A whole number.
    Number { max: u32 },
    /// An absolute path.
    Path,
    /// `https://…`
    Url,
    /// Some of these words.
    Words(&'static [Word]),
    /// Names, checked by the room that uses them.
    Names,
    /// Rules of the network policy.
    Rules,
    /// Addresses of DNS servers.
    Addresses,
    /// Ports, TCP unless said otherwise.
    Ports,
    /// Arguments of a program, in order.
    Arguments,
}

/// A word that a setting accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    pub word: &'static str,
}

#[must_use]
pub const fn word(word: &'static str) -> Word {
    Word { word }
}

/// One key of `innkeeper.toml`, which is one variable too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// `section.key`
    pub key: &'static str,
    pub kind: Kind,
    /// As it would be written in a variable; blank if there is none.
    pub default: &'static str,
    /// A value that makes sense, as it would be written in a variable.
    pub example: &'static str,
    pub help: &'static str,
    /// Variables of other programs that mean the same.
    pub aliases: &'static [&'static str],
}

impl Kind {
    /// What a value of this kind looks like.
    #[must_use]
    pub fn expected(self) -> String {
        match self {
            Self::Line => "one line of text".to_owned(),
            Self::Text => "text".to_owned(),
            Self::Choice(words) => match list(words) {
                one if !one.contains(',') => format!("only {one}"),
                several => format!("one of {several}"),
            },
            Self::Duration { min, max } => {
                let shown = |seconds| humantime::format_duration(std::time::Duration::from_secs(seconds));
                format!("a duration with its unit, {} to {}", shown(min), shown(max))
            }
            Self::Size => "a size with its unit (K, M, G) or a share of the memory (25%)".to_owned(),
            Self::Number { max } => format!("a whole number, 0 to {max}"),
            Self::Path => "an absolute path".to_owned(),
            Self::Url => "an https:// address".to_owned(),
            Self::Words(words) => format!("a list of {}", list(words)),
            Self::Names => "a list of names".to_owned(),
            Self::Rules => "a list of rules, NAME[:PORT[,PORT…]] [private] [tls|http] [ech]".to_owned(),
            Self::Addresses => {
                "a list of IP addresses, with :PORT if it is not 53; tls://ADDRESS#NAME asks by TLS"
                    .to_owned()
            }
            Self::Ports => "a list of ports, such as 8080 or 5353/udp".to_owned(),
            Self::Arguments => "a list of arguments".to_owned(),
        }
    }

    /// How it is written in TOML.
    #[must_use]
    pub fn toml_type(self) -> TomlType {
        match self {
            Self::Number { .. } => TomlType::Integer,
            Self::Words(_) | Self::Names | Self::Rules | Self::Addresses | Self::Ports | Self::Arguments => {
                TomlType::Strings
            }
            Self::Line
            | Self::Text
            | Self::Choice(_)
            | Self::Duration { .. }
            | Self::Size
            | Self::Path
            | Self::Url => TomlType::String,
        }
    }

    /// What separates the items of a list in a variable. A rule holds commas and blanks, an argument anything but a
    /// newline.
    #[must_use]
    pub fn separators(self) -> &'static [char] {
        match self {
            Self::Rules => &[';', '\n'],
            Self::Arguments => &['\n'],
            Self::Words(_) | Self::Names | Self::Addresses | Self::Ports => &[',', ';', '\n', ' ', '\t'],
            Self::Line
            | Self::Text
            | Self::Choice(_)
            | Self::Duration { .. }
            | Self::Size
            | Self::Number { .. }
            | Self::Path
            | Self::Url => &[],
        }
    }
}

/// The types of TOML that settings use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TomlType {
    String,
    Integer,
    /// An array of strings.
    Strings,
}

fn list(words: &[Word]) -> String {
    words.iter().map(|word| word.word).collect::<Vec<_>>().join(", ")
}

impl Setting {
    /// `INNKEEPER_SECTION_KEY`
    #[must_use]
    pub fn variable(&self) -> String {
        format!("INNKEEPER_{}", self.key.replace('.', "_").to_ascii_uppercase())
    }

    #[must_use]
    pub fn section(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(section, _)| section)
    }

    /// The key without its section.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(_, name)| name)
    }

    /// A line of TOML that sets it to a value written as in a variable.
    #[must_use]
    pub fn toml_line(&self, value: &str) -> String {
        let name = self.name();
        match self.kind.toml_type() {
            TomlType::String => format!("{name} = {}", quoted(value)),
            TomlType::Integer => format!("{name} = {value}"),
            TomlType::Strings => {
                let items =
                    value.split(self.kind.separators()).map(str::trim).filter(|item| !item.is_empty());
                format!("{name} = [{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// The setting of this key.
#[must_use]
pub fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// The sections, in the order of the table.
pub fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    SETTINGS.iter().filter_map(move |setting| {
        let section = setting.section();
        (std::mem::replace(&mut last, section) != section).then_some(section)
    })
}

/// The candidate that was probably meant: nearest by Levenshtein's distance, if it is near at all.
pub fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Two swapped letters are a distance of 2; in a word of three letters that is another word.
    let limit = if text.len() < 4 { 1 } else { (text.len() / 3).clamp(2, 5) };
    let scored = candidates.map(|candidate| (distance(text, candidate), candidate));
    scored.filter(|(distance, _)| *distance <= limit).min_by_key(|(distance, _)| *distance).map(|(_, c)| c)
}

fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, a) in one.chars().enumerate() {
        let mut diagonal = index;
        let mut left = index + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&other) {
            let above = *cell;
            let cost = diagonal + usize::from(a != *b);
            left = cost.min(above + 1).min(left + 1);
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = index + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_grouped_and_well_formed() {
        let mut keys: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
        assert!(keys.iter().all(|key| key.split('.').count() == 2));
        let sections: Vec<&str> = sections().collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), SETTINGS.len());
        let mut unique = sections.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), sections.len(), "a section is in one piece: {sections:?}");
        let variables: std::collections::HashSet<String> = SETTINGS.iter().map(Setting::variable).collect();
        assert_eq!(variables.len(), SETTINGS.len(), "no two keys share a variable");
    }

    #[test]
    fn every_key_of_the_design_is_there() {
        let design = [
            ("model", "provider"),
            ("secrets", "required"),
            (
                "network",
                "allow profiles upstreams backend refresh inbound loopback requests boot_timeout proxy",
            ),
            ("filesystem", "workspace_size tmp_size home_size"),
            ("repository", "url bundle path branch depth"),
            (
                "session",
                "start mode agent args command prompt on_exit on_limit stop_timeout until max_time max_cost",
            ),
            ("agent", "allow"),
            (
                "claude",
                "status_line notes hints session_names formatters instructions skills plugins sync_fork",
            ),
            ("telemetry", "endpoint attributes log_prompts log_tools"),
            ("tls", "ca_certs"),
            ("persist", "interval size"),
            ("log", "format file"),
            ("notices", "command webhook on"),
            ("boot", "accept"),
            ("identity", "name email"),
        ];
        for (section, names) in design {
            for name in names.split(' ') {
                assert!(setting(&format!("{section}.{name}")).is_some(), "{section}.{name}");
            }
        }
    }

    #[test]
    fn the_nearest_key_is_suggested_and_a_far_one_is_not() {
        let keys = || SETTINGS.iter().map(|setting| setting.key);
        assert_eq!(nearest("session.stop_timout", keys()), Some("session.stop_timeout"));
        assert_eq!(nearest("network.alow", keys()), Some("network.allow"));
        assert_eq!(nearest("filesystem.worksapce_size", keys()), Some("filesystem.workspace_size"));
        assert_eq!(nearest("quite.different", keys()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
    }

    #[test]
    fn toml_lines_are_toml() {
        for setting in SETTINGS.iter().filter(|setting| !setting.example.is_empty()) {
            let line = setting.toml_line(setting.example);
            assert!(line.parse::<toml::Table>().is_ok(), "{line}");
        }
    }
}
