//! Every kind of value, good and bad, from a variable and from a file.

use super::super::raw::{Given, read_toml};
use super::super::settings::SETTINGS;
use super::*;

fn file(text: &str) -> Values {
    let (config, problems) = read_toml(text, "i.toml");
    assert_eq!(problems, []);
    Values::new(config.settings)
}

fn variable(key: &'static str, text: &str) -> Values {
    let place = Place::Variable("V".to_owned());
    let given = Given { place, value: RawValue::One(text.to_owned()) };
    Values::new(RawSettings::from([(key, given)]))
}

fn items(key: &'static str, texts: &[&str]) -> Values {
    let place = Place::Variable("V".to_owned());
    let items = texts.iter().map(|text| ((*text).to_owned(), place.clone())).collect();
    Values::new(RawSettings::from([(key, Given { place, value: RawValue::Many(items) })]))
}

fn texts(values: &Values) -> Vec<String> {
    values.problems.iter().map(ToString::to_string).collect()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn every_default_can_be_read() {
    let mut values = Values::new(RawSettings::new());
    for setting in SETTINGS {
        match setting.kind {
            // Without a default there is no bound.
            Kind::Duration { .. } if setting.default.is_empty() => assert!(!values.is_set(setting.key)),
            Kind::Duration { .. } => assert!(values.duration(setting.key) >= SECOND),
            Kind::Size => assert_ne!(values.size(setting.key), ByteSize::Bytes(0)),
            Kind::Number { .. } => assert_eq!(values.number(setting.key), 0),
            Kind::Path => {
                let path = values.path(setting.key).map(|path| path.display().to_string());
                assert_eq!(path.unwrap_or_default(), setting.default);
            }
            Kind::Words(_) => assert_eq!(values.words(setting.key).join(","), setting.default),
            Kind::Addresses => assert_eq!(values.name_servers(setting.key), []),
            Kind::Ports => assert_eq!(values.ports(setting.key), []),
            Kind::Arguments => assert_eq!(values.arguments(setting.key), [] as [String; 0]),
            Kind::Choice(words) => {
                assert!(words.iter().any(|word| word.word == setting.default), "{}", setting.key);
            }
            Kind::Line | Kind::Text | Kind::Url | Kind::Names | Kind::Rules => {}
        }
        assert!(!setting.kind.expected().is_empty());
    }
    assert_eq!(values.problems, []);
}

#[test]
fn a_key_that_is_not_in_the_table_is_our_fault_and_said() {
    let mut values = Values::new(RawSettings::new());
    assert!(values.one("no.key").is_none() && values.many("no.key").is_empty());
    assert_eq!(values.duration("no.key"), Duration::ZERO);
    assert_eq!(values.problems.len(), 3);
}

#[test]
fn durations_and_sizes_say_what_was_given_and_what_is_expected() {
    let mut values =
        file("[session]\nstop_timeout = \"8\"\n[filesystem]\ntmp_size = \"lots\"\nhome_size = \"25%\"\n");
    values.duration("session.stop_timeout");
    values.size("filesystem.tmp_size");
    assert_eq!(values.size("filesystem.home_size"), ByteSize::Share(25));
    assert_eq!(
        texts(&values),
        [
            "i.toml:2: session.stop_timeout is \"8\": it has no unit; expected a duration with its unit, 1s to 1h\n   next: for example stop_timeout = \"8s\"",
            "i.toml:4: filesystem.tmp_size is \"lots\": it is not a whole number with a unit; expected a size with its unit (K, M, G) or a share of the memory (25%)\n   next: for example tmp_size = \"512M\"",
        ]
    );
    let mut values = variable("session.stop_timeout", "1y");
    values.duration("session.stop_timeout");
    assert_eq!(
        texts(&values),
        [
            "V: is \"1y\": it is more than the most possible, 1h; expected a duration with its unit, 1s to 1h\n   next: for example V=8s"
        ]
    );
}

#[test]
fn an_unknown_choice_is_named_with_what_is_near() {
    let pairs = [("boot", 1), ("wait", 2)];
    assert_eq!(variable("session.start", "wait").choice("session.start", 0, &pairs), 2);
    let expected = "; expected one of boot, wait\n   next: for example V=boot";
    for (text, why) in [
        ("boto", "it is unknown (did you mean boot?)"),
        ("whatever else", "it is unknown"),
        ("", "it is unknown"),
    ] {
        let mut values = variable("session.start", text);
        assert_eq!(values.choice("session.start", 0, &pairs), 0);
        assert_eq!(texts(&values), [format!("V: is \"{text}\": {why}{expected}")]);
    }
}

#[test]
fn numbers_are_whole_and_bounded() {
    assert_eq!(variable("repository.depth", "5").number("repository.depth"), 5);
    for text in ["", "-1", "+1", "1.5", "0x10", "1000001", "99999999999", "one"] {
        let mut values = variable("repository.depth", text);
        assert_eq!(values.number("repository.depth"), 0);
        assert_eq!(values.problems.len(), 1, "{text:?}");
    }
}

#[test]
fn paths_are_absolute_and_do_not_climb() {
    let read = |text: &str| {
        let mut values = variable("tls.ca_certs", text);
        (values.path("tls.ca_certs"), values.problems.len())
    };
    assert_eq!(read("/etc/ca.pem"), (Some("/etc/ca.pem".into()), 0));
    assert_eq!(read(" "), (None, 0));
    for bad in ["ca.pem", "./ca.pem", "/etc/../ca.pem", "/etc\0/x", "-----BEGIN CERTIFICATE-----"] {
        assert_eq!(read(bad), (None, 1), "{bad:?}");
    }
}

#[test]
fn lines_are_lines() {
    let read = |text: &str| {
        let mut values = variable("identity.name", text);
        let line = values.line("identity.name", |text| text.contains('<').then_some("it holds \"<\""));
        (line, texts(&values))
    };
    assert_eq!(read(" A B "), (Some("A B".to_owned()), vec![]));
    assert_eq!(read(""), (None, vec![]));
    assert!(read("a\nb").1[0].starts_with("V: is \"a\\nb\": it holds a control character"));
    assert!(read("a<").1[0].contains("it holds \"<\""));
    assert!(read(&"a".repeat(257)).1[0].contains("longer than 256"));
}

#[test]
fn words_addresses_and_ports_report_each_bad_item() {
    let mut values = items("agent.allow", &["userns", "ptrac", "x"]);
    assert_eq!(values.words("agent.allow"), ["userns"]);
    assert_eq!(values.problems.len(), 2);
    assert!(texts(&values)[0].contains("did you mean ptrace?"));

    let mut values =
        items("network.upstreams", &["192.0.2.1", "[2001:db8::1]:5353", "2001:db8::2", "192.0.2.1:54"]);
    let addresses: Vec<String> =
        values.name_servers("network.upstreams").iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.1:53", "[2001:db8::1]:5353", "[2001:db8::2]:53", "192.0.2.1:54"]);
    let bad = ["dns.example", "0.0.0.0", "::", "224.0.0.1", "192.0.2.1:0", "192.0.2.1:99999", "192.0.2.1/24"];
    let mut values = items("network.upstreams", &bad);
    assert!(values.name_servers("network.upstreams").is_empty());
    assert_eq!(values.problems.len(), bad.len());

    let mut values = items("network.inbound", &["8080", "53/udp", "1/tcp"]);
    let ports: Vec<String> = values.ports("network.inbound").iter().map(ToString::to_string).collect();
    assert_eq!(ports, ["8080/tcp", "53/udp", "1/tcp"]);
    let bad = ["0", "65536", "http", "+80", "80/sctp", "/tcp", "80/"];
    let mut values = items("network.inbound", &bad);
    assert!(values.ports("network.inbound").is_empty());
    assert_eq!(values.problems.len(), bad.len());
}

#[test]
fn examples_can_be_pasted_into_a_shell() {
    for (value, shell) in
        [("8s", "8s"), ("a b", "'a b'"), ("it's; x", "'it'\\''s; x'"), ("--model\nopus", "$'--model\\nopus'")]
    {
        assert_eq!(in_shell(value), shell);
    }
}

#[test]
fn hidden_values_stay_hidden() {
    let mut values = variable("repository.url", "https://user:canary@example.org/x");
    let found = values.one("repository.url").unwrap();
    assert!(!format!("{found:?}").contains("canary"));
    values.refuse_unseen(&found, "it holds a user or a password");
    assert!(!texts(&values)[0].contains("canary"), "{:?}", texts(&values));
}
