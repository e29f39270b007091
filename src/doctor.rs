//! `innkeeper doctor`: what this host can and can't give, mechanism by mechanism, before a boot and without a change.
//!
//! It is started with the very flags with which one would boot. What is looked at, and what is said about it, is the
//! boot's own (`prerequisites`): there is no second diagnosis. What only trying can tell is tried in namespaces that end
//! with their thread or child.

mod engines;
pub mod finding;
mod given;
mod image;
mod kernel;
mod network;
mod places;
pub mod trial;

use std::path::{Path, PathBuf};

use finding::{Examination, Finding};
use trial::Trial;

use crate::account::{AccountError, Accounts};
use crate::config::{self, Config, Problem, Problems, Sources};
use crate::filesystem::layout::{self, Mount};
use crate::filesystem::seal::Writable;
use crate::namespace::Network;
use crate::prerequisites::privileges::Privileges;
use crate::prerequisites::runtime::{self, Evidence, Runtime};
use crate::prerequisites::{Lack, places as needs};
use crate::report::{self, chain, exit};

#[derive(Debug, Clone, clap::Args)]
pub struct DoctorArgs {
    /// For scripts: one JSON object, "schema": 1
    #[arg(long)]
    pub json: bool,
    #[arg(long, hide = true, value_name = "WHAT")]
    pub trial: Option<Trial>,
    #[arg(long, hide = true, default_value = "/")]
    pub path: PathBuf,
}

/// Exit status 0 if a boot would succeed, 78 if not.
#[must_use]
pub fn run(args: &DoctorArgs) -> u8 {
    match args.trial {
        Some(Trial::UserNamespace) => return ended(trial::user_namespace().map(|()| String::new())),
        Some(Trial::Door) => return ended(trial::door(&args.path).map(|()| String::new())),
        Some(Trial::Mounts) => return ended(try_mounts()),
        None => {}
    }
    let examination = Subject::look().examine();
    let text = if args.json {
        serde_json::to_string(&examination).unwrap_or_default() + "\n"
    } else {
        examination.text()
    };
    crate::cli::print(&text);
    if examination.fit { exit::OK } else { exit::CONFIG }
}

fn ended(trial: Result<String, String>) -> u8 {
    match trial {
        Ok(text) => crate::cli::print(&text),
        Err(error) => {
            report::last_words("trial", &error);
            1
        }
    }
}

fn try_mounts() -> Result<String, String> {
    let subject = Subject::look();
    let (layout, agent) = subject.layout();
    let agent = agent.ok_or("the image has no agent")?;
    let lacks = trial::mounts(&layout, &agent, subject.rootfs())?;
    serde_json::to_string(&lacks).map_err(|error| error.to_string())
}

/// Who is examined.
struct Subject {
    given: Privileges,
    config: Result<Config, Problems>,
    accounts: Result<Accounts, AccountError>,
    network: Result<Network, crate::namespace::NamespaceError>,
    fly: bool,
}

impl Subject {
    fn look() -> Self {
        let env: config::Environment = std::env::vars_os().collect();
        let fly = env.text("FLY_MACHINE_ID").is_some() && Path::new("/.fly").exists();
        let sources = Sources { env, ..Sources::default() };
        Self {
            given: Privileges::look(),
            config: config::load(&sources),
            accounts: Accounts::find(),
            network: Network::inspect(),
            fly,
        }
    }

    fn runtime(&self) -> Runtime {
        let set = |name: &str| std::env::var_os(name).is_some();
        let network = self.network.as_ref();
        runtime::guess(&Evidence {
            fly: self.fly,
            kubernetes: set("KUBERNETES_SERVICE_HOST"),
            dockerenv: Path::new("/.dockerenv").exists(),
            containerenv: Path::new("/run/.containerenv").exists(),
            container: std::env::var("container").ok(),
            image: Path::new(crate::identity::home::SKELETON).exists(),
            initial_network: network.is_ok_and(|network| network.initial),
            initial_pids: network.is_ok_and(|network| network.initial_pids),
            pid: std::process::id(),
        })
    }

    fn rootfs(&self) -> bool {
        !self.config.as_ref().is_ok_and(|config| config.boot.accepts("rootfs"))
    }

    /// The places of this configuration, or those of the defaults where it can't be read.
    fn layout(&self) -> (Vec<Mount>, Option<crate::account::Account>) {
        let agent = self.accounts.as_ref().ok().map(|accounts| accounts.agent.clone());
        let layout = match (&self.config, &agent) {
            (Ok(config), Some(agent)) => needs::layout(config, agent),
            (Err(_), Some(agent)) => layout::plan(agent.owner(), &agent.home, layout::DEFAULTS),
            (_, None) => Vec::new(),
        };
        (layout, agent)
    }

    fn examine(&self) -> Examination {
        let runtime = self.runtime();
        let mut findings = vec![kernel_version()];
        match &self.network {
            Ok(network) if runtime == Runtime::Bare => {
                findings.extend(given::findings(&self.given));
                findings.extend(engines::findings(network, &self.given));
                findings.extend(kernel::findings(None, false));
            }
            Ok(network) => findings.extend(self.of_a_box(network)),
            Err(error) => {
                let lack = Lack::new(chain(error), "let the box ask the kernel by rtnetlink");
                findings.push(Finding::missing("network namespace", &lack, "rtnetlink"));
            }
        }
        Examination::new(runtime, findings)
    }

    fn of_a_box(&self, network: &Network) -> Vec<Finding> {
        let config = self.config.as_ref().ok();
        let mut findings = self.configuration();
        findings.push(image::users(&self.accounts));
        findings.extend(given::findings(&self.given));
        findings.extend(network::findings(network, config, self.fly, &self.given));
        let (layout, agent) = self.layout();
        let owner = agent.as_ref().map_or(layout::ROOT, crate::account::Account::owner);
        if owner != layout::ROOT {
            let log = config.and_then(|config| config.log.file.as_deref());
            let writable = Writable::new(&layout, owner).keeping(log);
            let lack = log.and_then(|path| crate::prerequisites::log_file::lack(path, &layout, owner));
            findings
                .extend(lack.map(|lack| Finding::missing("audit log", &lack, "the mount table and modes")));
            let accepts = |name: &str| config.is_some_and(|config| config.boot.accepts(name));
            findings.extend(places::findings(&layout, &writable, self.rootfs(), &self.given));
            findings.extend(places::doors(agent.as_ref(), accepts("host-doors"), &self.given));
        }
        let userns = config.is_some_and(|config| config.agent.userns);
        findings.extend(kernel::findings(self.accounts.as_ref().ok(), userns));
        let home = agent.map(|agent| agent.home).unwrap_or_default();
        findings.extend(image::programs(config, &home));
        findings
    }

    fn configuration(&self) -> Vec<Finding> {
        let (mechanism, tried) = ("configuration", "read as the boot reads it");
        match &self.config {
            Ok(config) => {
                let given_up = config.boot.accept.join(", ");
                if given_up.is_empty() {
                    return vec![Finding::ok(mechanism, "valid", tried)];
                }
                let found = format!("valid; given up if need be: {given_up}");
                vec![Finding::weaker(mechanism, found, tried).next("leave INNKEEPER_BOOT_ACCEPT out")]
            }
            Err(problems) => {
                let lack = |problem: &Problem| {
                    Lack::new(format!("{}: {}", problem.what, problem.message), problem.next.clone())
                };
                let of = |problem| Finding::missing(mechanism, &lack(problem), tried);
                problems.0.iter().map(of).collect()
            }
        }
    }
}

fn kernel_version() -> Finding {
    let version = std::fs::read_to_string("/proc/version").unwrap_or_default();
    let release: String = version.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
    if runtime::gvisor(&version) {
        let found = "gVisor: no nf_tables and no NAT; what it filters is for the packet filter below to say";
        return Finding::weaker("kernel", found, "/proc/version").next("--runtime runc");
    }
    Finding::ok("kernel", release, "/proc/version")
}
