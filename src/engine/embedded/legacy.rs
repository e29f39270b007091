//! Hosts whose filter is the old iptables (x_tables) and drops what is forwarded: what nf_tables accepts is dropped there
//! all the same. Two rules in front, found again by their comment; spoken by the host's own program.

use std::process::{Command, Stdio};

/// Names the tables of x_tables that this network namespace has; reading it loads nothing.
const TABLES: [(&str, &str); 2] =
    [("/proc/net/ip_tables_names", "iptables-legacy"), ("/proc/net/ip6_tables_names", "ip6tables-legacy")];
/// How long to wait for another iptables, in seconds.
const WAIT: &str = "10";

/// What a program says; `None` if it fails.
fn say(program: &str, words: &[&str]) -> Option<String> {
    let path = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";
    let mut command = Command::new(program);
    command.args(["-w", WAIT]).args(words).env_clear().env("PATH", path);
    let said = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    said.status.success().then(|| String::from_utf8_lossy(&said.stdout).into_owned())
}

/// The programs of families that have a filter here.
fn in_use() -> impl Iterator<Item = &'static str> {
    let filters = |path: &str| {
        std::fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "filter"))
    };
    TABLES.iter().filter(move |(path, _)| filters(path)).map(|(_, program)| *program)
}

fn rules<'a>(interface: &'a str, name: &'a str) -> [[&'a str; 8]; 2] {
    ["-i", "-o"].map(|side| [side, interface, "-m", "comment", "--comment", name, "-j", "ACCEPT"])
}

/// Opens what is dropped. What could not be done is told: the box runs, but nothing comes out of it.
pub fn open(interface: &str, name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for program in in_use() {
        let drops = match say(program, &["-S", "FORWARD"]) {
            Some(chain) => chain.lines().any(|line| line == "-P FORWARD DROP"),
            None => {
                problems.push(format!(
                    "{program} does not answer; if this host drops what it forwards, the box reaches nobody"
                ));
                false
            }
        };
        for rule in rules(interface, name).iter().filter(|_| drops) {
            if say(program, &[&["-I", "FORWARD"], &rule[..]].concat()).is_none() {
                problems.push(format!("{program} refused a rule in FORWARD: the box reaches nobody"));
            }
        }
    }
    problems
}

/// Removes both; none there is no error.
pub fn close(interface: &str, name: &str) {
    for program in in_use() {
        for rule in rules(interface, name) {
            // Once more than there can be: a killed keeper may have left them twice.
            for _ in 0..2 {
                if say(program, &[&["-D", "FORWARD"], &rule[..]].concat()).is_none() {
                    break;
                }
            }
        }
    }
}
