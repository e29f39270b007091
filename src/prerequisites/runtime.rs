//! Who runs this box, as far as it can be told from inside. (pure)

use std::fmt;

use serde::Serialize;

/// What started the process, for the words of `doctor`; nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// No container: the machine itself, or a login on it.
    Bare,
    /// Pid 1 of a kernel of its own.
    Machine,
    Fly,
    Kubernetes,
    Docker,
    Podman,
    /// `innkeeper run --engine embedded`.
    Embedded,
    /// A container of somebody else's.
    Container,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "no container: the host itself",
            Self::Machine => "a machine of its own",
            Self::Fly => "a Fly Machine",
            Self::Kubernetes => "a pod of Kubernetes",
            Self::Docker => "a container of Docker",
            Self::Podman => "a container of Podman",
            Self::Embedded => "innkeeper's embedded engine",
            Self::Container => "a container",
        })
    }
}

/// What speaks for one or the other.
#[expect(clippy::struct_excessive_bools, reason = "each is a sign of its own")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evidence {
    pub fly: bool,
    /// `KUBERNETES_SERVICE_HOST`.
    pub kubernetes: bool,
    /// `/.dockerenv`.
    pub dockerenv: bool,
    /// `/run/.containerenv`.
    pub containerenv: bool,
    /// The variable `container`, which engines set.
    pub container: Option<String>,
    /// The files of innkeeper's image are there.
    pub image: bool,
    pub initial_network: bool,
    pub initial_pids: bool,
    pub pid: u32,
}

/// The most telling evidence first.
#[must_use]
pub fn guess(evidence: &Evidence) -> Runtime {
    let named = evidence.container.as_deref();
    if evidence.fly {
        Runtime::Fly
    } else if named == Some("innkeeper") {
        Runtime::Embedded
    } else if evidence.initial_network && evidence.initial_pids && !(evidence.image && evidence.pid != 1) {
        // The marks of engines stay in a machine that was made of an image.
        if evidence.pid == 1 { Runtime::Machine } else { Runtime::Bare }
    } else if evidence.kubernetes {
        Runtime::Kubernetes
    } else if evidence.containerenv || named == Some("podman") {
        Runtime::Podman
    } else if evidence.dockerenv {
        Runtime::Docker
    } else {
        Runtime::Container
    }
}

/// gVisor shows a kernel that no distribution has any more (pkg/sentry/syscalls/linux: `LinuxVersion`).
#[must_use]
pub fn gvisor(proc_version: &str) -> bool {
    proc_version.starts_with("Linux version 4.4.0 ")
}

#[cfg(test)]
mod tests {
    use super::{Evidence, Runtime, guess, gvisor};

    #[test]
    fn the_runtime_is_guessed_by_its_marks() {
        let initial = Evidence { initial_network: true, initial_pids: true, pid: 77, ..Evidence::default() };
        assert_eq!(guess(&initial), Runtime::Bare);
        assert_eq!(guess(&Evidence { pid: 1, ..initial.clone() }), Runtime::Machine);
        assert_eq!(guess(&Evidence { fly: true, ..initial.clone() }), Runtime::Fly);
        assert_eq!(guess(&Evidence { dockerenv: true, ..Evidence::default() }), Runtime::Docker);
        assert_eq!(
            guess(&Evidence { dockerenv: true, ..initial.clone() }),
            Runtime::Bare,
            "a rootfs from an image"
        );
        let host_modes = Evidence { dockerenv: true, image: true, ..initial };
        assert_eq!(guess(&host_modes), Runtime::Docker, "--network host --pid host");
        let pod = Evidence { dockerenv: true, kubernetes: true, ..Evidence::default() };
        assert_eq!(guess(&pod), Runtime::Kubernetes);
        let podman = Evidence { container: Some("podman".into()), ..Evidence::default() };
        assert_eq!(guess(&podman), Runtime::Podman);
        assert_eq!(guess(&Evidence::default()), Runtime::Container);
        assert!(gvisor("Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016"));
        assert!(!gvisor("Linux version 6.18.44 (builder@host)"));
    }
}
