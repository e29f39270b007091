//! Settings from the environment: `INNKEEPER_SECTION_KEY` and the variables of other tools that mean the same.  (pure)

use super::environment::Environment;
use super::problems::{Problem, shown};
use super::provider::SECRETS;
use super::raw::{Given, Place, RawSettings, RawValue};
use super::settings::{SETTINGS, Setting, TomlType, nearest};

const PREFIX: &str = "INNKEEPER_";

/// What the environment says.
#[derive(Debug, Default)]
pub(super) struct Variables {
    /// `INNKEEPER_SECTION_KEY`, else a variable that means the same.
    pub(super) settings: RawSettings,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

/// Reads every variable that sets something; those with our prefix that set nothing are problems.
#[must_use]
pub(super) fn read_variables(environment: &Environment) -> Variables {
    let mut found = Variables::default();
    for setting in SETTINGS {
        for alias in setting.aliases.iter().rev() {
            found.alias(environment, setting, alias);
        }
        found.own(environment, setting);
    }
    found.strangers(environment);
    found.telemetry(environment);
    found
}

impl Variables {
    fn alias(&mut self, environment: &Environment, setting: &Setting, alias: &str) {
        match environment.get(alias).map(|value| value.to_str()) {
            // Compose files write `VARIABLE=${VARIABLE:-}`: for other tools blank means not set, so here too.
            Some(Some(text)) if text.trim().is_empty() => {}
            Some(Some(text)) => {
                self.settings.insert(setting.key, given(setting, alias, text));
            }
            Some(None) => self.problems.push(not_utf8(alias)),
            None => {}
        }
    }

    fn own(&mut self, environment: &Environment, setting: &Setting) {
        let variable = setting.variable();
        let text = match environment.get(&variable).map(|value| value.to_str()) {
            Some(Some(text)) => text,
            Some(None) => return self.problems.push(not_utf8(&variable)),
            None => return,
        };
        let own = given(setting, &variable, text);
        if let Some(alias) = self.settings.insert(setting.key, own.clone())
            && !same(&alias.value, &own.value)
        {
            self.warnings.push(format!("{variable} and {} differ; {variable} counts", alias.place));
        }
    }

    fn strangers(&mut self, environment: &Environment) {
        let kubernetes = environment.get("KUBERNETES_SERVICE_HOST").is_some();
        let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
        let mut strangers: Vec<String> = Vec::new();
        for (name, _) in environment.iter() {
            let name = name.to_string_lossy();
            if !name.starts_with(PREFIX) || known.iter().any(|variable| *variable == name) {
                continue;
            }
            if kubernetes && is_service_link(&name) {
                // The kubelet sets them for every service whose name begins so; nobody typed them.
                self.warnings
                    .push(format!("{} comes from a Kubernetes service and is not a setting", shown(&name)));
            } else {
                strangers.push(name.into_owned());
            }
        }
        strangers.sort();
        for name in strangers {
            let next = match nearest(&name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}?"),
                None => "unset it; innkeeper --help lists the settings".to_owned(),
            };
            self.problems.push(Problem::new(shown(&name), "is not a setting", next));
        }
    }

    /// Variables of OpenTelemetry that would be taken for effective and are not.
    fn telemetry(&mut self, environment: &Environment) {
        let names = environment.iter().filter_map(|(name, _)| name.to_str());
        let known = |name: &str| {
            let name = name.strip_suffix("_FILE").unwrap_or(name);
            SETTINGS.iter().any(|setting| setting.aliases.contains(&name))
                || SECRETS.iter().any(|spec| spec.name == name)
        };
        let mut ignored: Vec<String> = names
            .filter(|name| name.starts_with("GRAFANA_") || name.starts_with("OTEL_"))
            .filter(|name| !known(name))
            .map(shown)
            .collect();
        ignored.sort();
        if !ignored.is_empty() {
            let ignored = ignored.join(", ");
            self.warnings.push(format!("{ignored} not used: the box decides the rest of its telemetry"));
        }
    }
}

fn not_utf8(variable: &str) -> Problem {
    Problem::new(variable, "is not UTF-8", "give it as UTF-8 text")
}

fn given(setting: &Setting, variable: &str, text: &str) -> Given {
    let place = Place::Variable(variable.to_owned());
    let value = match setting.kind.toml_type() {
        TomlType::String => RawValue::One(text.to_owned()),
        TomlType::Integer => RawValue::One(text.trim().to_owned()),
        TomlType::Strings => {
            let items = text.split(setting.kind.separators()).map(str::trim).filter(|item| !item.is_empty());
            RawValue::Many(items.map(|item| (item.to_owned(), place.clone())).collect())
        }
    };
    Given { place, value }
}

fn same(one: &RawValue, other: &RawValue) -> bool {
    let texts = |value: &RawValue| match value {
        RawValue::One(text) => vec![text.clone()],
        RawValue::Many(items) => items.iter().map(|(text, _)| text.clone()).collect(),
    };
    texts(one) == texts(other)
}

/// The variables that the kubelet makes of services: `…_SERVICE_HOST`, `…_SERVICE_PORT…`, `…_PORT`, `…_PORT_53_UDP…`.
fn is_service_link(name: &str) -> bool {
    let numbered = name.split_once("_PORT_").is_some_and(|(_, rest)| {
        let mut parts = rest.split('_');
        let port =
            parts.next().is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
        port && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    });
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.ends_with("_PORT") || numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Variables {
        read_variables(&Environment::from_iter(pairs.iter().copied()))
    }

    fn one(found: &Variables, key: &str) -> (String, String) {
        let given = &found.settings[key];
        match &given.value {
            RawValue::One(text) => (text.clone(), given.place.to_string()),
            RawValue::Many(items) => {
                let texts: Vec<&str> = items.iter().map(|(text, _)| text.as_str()).collect();
                (texts.join("|"), given.place.to_string())
            }
        }
    }

    #[test]
    fn own_variables_win_over_aliases_and_blank_aliases_are_not_set() {
        let found = read(&[("REPO_URL", "a"), ("INNKEEPER_REPOSITORY_URL", "b"), ("CLAUDE_PROMPT", " \n")]);
        assert_eq!(one(&found, "repository.url"), ("b".to_owned(), "INNKEEPER_REPOSITORY_URL".to_owned()));
        assert_eq!(
            found.warnings,
            ["INNKEEPER_REPOSITORY_URL and REPO_URL differ; INNKEEPER_REPOSITORY_URL counts"]
        );
        assert!(!found.settings.contains_key("session.prompt"));
        assert_eq!(found.problems, []);
        let same = read(&[("REPO_URL", "a"), ("INNKEEPER_REPOSITORY_URL", "a")]);
        assert_eq!(same.warnings, [] as [String; 0]);
    }

    #[test]
    fn the_variables_of_codetainer_are_understood() {
        let found = read(&[
            ("REPO_URL", "https://github.com/o/r"),
            ("CLAUDE_PROMPT", "line one\nline two"),
            ("GIT_USER_NAME", "A B"),
            ("GIT_USER_EMAIL", "a@example.org"),
            ("GRAFANA_API_TOKEN", "canary"),
            ("OTEL_LOG_TOOL_DETAILS", "1"),
            ("OTEL_TRACES_SAMPLER", "always_off"),
        ]);
        assert_eq!(one(&found, "session.prompt").0, "line one\nline two");
        assert_eq!(one(&found, "identity.name").0, "A B");
        assert_eq!(found.problems, []);
        assert_eq!(
            found.warnings,
            ["OTEL_TRACES_SAMPLER not used: the box decides the rest of its telemetry"]
        );
    }

    #[test]
    fn lists_are_separated_as_suits_them() {
        let found = read(&[
            ("INNKEEPER_NETWORK_ALLOW", "a.example:80,443; b.example private\nc.example;;"),
            ("INNKEEPER_NETWORK_PROFILES", "claude, npm;go\npypi debian"),
            ("INNKEEPER_SESSION_ARGS", "--model\nopus, the; best\n"),
            ("INNKEEPER_BOOT_ACCEPT", ""),
        ]);
        assert_eq!(one(&found, "network.allow").0, "a.example:80,443|b.example private|c.example");
        assert_eq!(one(&found, "network.profiles").0, "claude|npm|go|pypi|debian");
        assert_eq!(one(&found, "session.args").0, "--model|opus, the; best");
        assert_eq!(one(&found, "boot.accept").0, "");
    }

    #[test]
    fn strangers_with_our_prefix_are_problems_with_a_suggestion() {
        let found =
            read(&[("INNKEEPER_SESION_PROMPT", "canary"), ("INNKEEPER_ZZZZZZZZZZZZ", "x"), ("OTHER", "y")]);
        let texts: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "INNKEEPER_SESION_PROMPT: is not a setting\n   next: did you mean INNKEEPER_SESSION_PROMPT?",
                "INNKEEPER_ZZZZZZZZZZZZ: is not a setting\n   next: unset it; innkeeper --help lists the settings",
            ]
        );
    }

    #[test]
    fn octets_that_are_not_text_are_problems() {
        use std::os::unix::ffi::OsStringExt;
        let odd = || std::ffi::OsString::from_vec(vec![b'a', 0xff]);
        let environment =
            Environment::from_iter([("REPO_URL", odd()), ("INNKEEPER_LOG_FORMAT", odd()), ("X", odd())]);
        let found = read_variables(&environment);
        let texts: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "REPO_URL: is not UTF-8\n   next: give it as UTF-8 text",
                "INNKEEPER_LOG_FORMAT: is not UTF-8\n   next: give it as UTF-8 text",
            ]
        );
    }

    #[test]
    fn service_links_of_kubernetes_are_no_settings_and_no_errors() {
        let links = [
            ("INNKEEPER_SERVICE_HOST", "10.0.0.1"),
            ("INNKEEPER_SERVICE_PORT_HTTP", "80"),
            ("INNKEEPER_PORT", "tcp://10.0.0.1:80"),
            ("INNKEEPER_PORT_80_TCP_ADDR", "10.0.0.1"),
        ];
        assert_eq!(read(&links).problems.len(), 4, "outside of Kubernetes somebody typed them");
        let mut inside = links.to_vec();
        inside.push(("KUBERNETES_SERVICE_HOST", "10.0.0.1"));
        inside.push(("INNKEEPER_SESSION_PORTS", "x"));
        let found = read(&inside);
        assert_eq!(found.problems.len(), 1);
        assert_eq!(found.warnings.len(), 4);
    }
}
