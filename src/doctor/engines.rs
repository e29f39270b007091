//! A bare host: no box boots here, `innkeeper run` starts one. Which engines there are, and what the embedded one would
//! get.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::finding::{Finding, Verdict};
use crate::namespace::Network;
use crate::prerequisites::privileges::Privileges;
use crate::prerequisites::{Lack, network, programs};

/// Name, program, and the socket on which it answers; Podman needs none.
const ENGINES: [(&str, Option<&str>); 2] = [("docker", Some("/var/run/docker.sock")), ("podman", None)];

pub(super) fn findings(host: &Network, given: &Privileges) -> Vec<Finding> {
    let mut findings: Vec<Finding> = ENGINES.iter().map(|(name, socket)| engine(name, *socket)).collect();
    let found = findings.iter().any(|finding| finding.verdict == Verdict::Ok);
    findings.push(embedded(given, found));
    let (mechanism, tried) = ("a boot right here", "rtnetlink, /proc");
    let why = network::shared(host, false, false).err().map(|lack| lack.what).unwrap_or_default();
    findings.push(
        Finding::not_applicable(mechanism, format!("refused: {why}"), tried)
            .next("innkeeper run starts a box"),
    );
    findings
}

fn engine(name: &str, socket: Option<&str>) -> Finding {
    let mechanism = format!("engine {name}");
    let program = programs::found(name);
    if !program.exists() {
        return Finding::not_applicable(mechanism, "not installed", "PATH");
    }
    match socket.map(|socket| (socket, UnixStream::connect(Path::new(socket)))) {
        None => Finding::ok(mechanism, program.display().to_string(), "PATH"),
        Some((socket, Ok(_))) => Finding::ok(mechanism, format!("answers on {socket}"), "connect(2)"),
        Some((socket, Err(error))) => {
            Finding::not_applicable(mechanism, format!("{socket}: {error}"), "connect(2)")
                .next("start its daemon")
        }
    }
}

/// Root, with every capability; the mechanisms below are tried in namespaces as the engine would make them.
fn embedded(given: &Privileges, another: bool) -> Finding {
    let (mechanism, tried) = ("engine embedded", "geteuid(2), capget(2)");
    let lack = given.lack().or_else(|| {
        (!given.may_mount())
            .then(|| Lack::new("missing capabilities: SYS_ADMIN (to make namespaces)", "run it as root"))
    });
    match lack {
        None => Finding::ok(
            mechanism,
            "experimental: namespaces of this kernel, weaker than an engine's isolation",
            tried,
        ),
        Some(lack) if another => Finding::not_applicable(mechanism, lack.what, tried).next("run it as root"),
        Some(lack) => Finding::missing(
            mechanism,
            &Lack::new(lack.what, "run it as root, or install docker or podman"),
            tried,
        ),
    }
}
