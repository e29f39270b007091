//! The protections by name, each with the look that proves it; the boot and `status` use the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::places::{agent_identity, sealed_directories};
use super::step::Trouble;
use crate::config::settings::PROTECTIONS;
use crate::filesystem::{self, Sealed};
use crate::firewall::Firewall;
use crate::innkeeper::Innkeeper;
use crate::readiness::{self, Attempt};
use crate::secrets::{Credential, Holder};
use crate::status::report::SecretHeld;
use crate::status::{Held, MAX_AGE, Verify};
use crate::supervisor::Spawner;
use crate::supervisor::run_as::Identity;
use crate::watch;

/// When it was tried, and how it ended.
type Tried = (Instant, Result<Vec<Attempt>, String>);

/// The self-attack and its last result, shared by all protections that it proves.
#[derive(Debug, Clone)]
pub(super) struct Attack {
    spawner: Spawner,
    identity: Identity,
    attack: readiness::Attack,
    /// The ports that lead to the gate may be others by the next attack.
    innkeeper: Arc<Innkeeper>,
    /// Who must not take the attack's packets for the agent's.
    watch: Option<watch::keeper::Keeper>,
    last: Arc<Mutex<Option<Tried>>>,
}

impl Attack {
    pub(super) fn plan(innkeeper: &Arc<Innkeeper>, sealed: &Sealed) -> Self {
        Self {
            innkeeper: Arc::clone(innkeeper),
            spawner: innkeeper.spawner.clone(),
            identity: agent_identity(innkeeper, "/"),
            attack: readiness::Attack {
                supervisor: std::process::id(),
                resolver: readiness::probe::resolver(),
                upstreams: innkeeper.upstreams.get().cloned().unwrap_or_default(),
                gated: Vec::new(),
                proxy: innkeeper.proxy.get().map(|proxy| (*proxy).into()),
                sealed: sealed_directories(sealed.writable()),
                doors: sealed.doors().to_vec(),
                userns: innkeeper.config.agent.userns,
            },
            watch: innkeeper.watch.get().cloned(),
            last: Arc::default(),
        }
    }

    /// The result of an attack that is not older than a proof may be; a failed one counts as long, so that seven
    /// protections do not attack seven times. Who asks meanwhile waits for the attack that runs.
    pub(super) fn recent(&self) -> Result<Vec<Attempt>, String> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, result)) if at.elapsed() < MAX_AGE => result.clone(),
            Some(_) | None => {
                let gated = self.innkeeper.allowlist().gated_ports();
                let attack = readiness::Attack { gated, ..self.attack.clone() };
                if let Some(watch) = &self.watch {
                    watch.announce(&readiness::probe::refusals(&attack));
                }
                if let Some(gate) = self.innkeeper.gate.get() {
                    gate.announce(readiness::probe::gate::refusals(attack.proxy));
                }
                let attempts = readiness::attack(&self.spawner, &self.identity, &attack);
                let result = attempts.map_err(|error| crate::report::chain(&error));
                *last = Some((Instant::now(), result.clone()));
                result
            }
        }
    }

    /// What of it speaks about one protection.
    fn judge(&self, protection: &'static str) -> Result<String, String> {
        let attempts = self.recent()?;
        let passed = readiness::passed(&attempts, Some(protection));
        // A protection that nothing tried is not proven; only a box without host doors has nothing to try there.
        if protection != "host-doors" && !attempts.iter().any(|attempt| attempt.protection == protection) {
            Err("the self-attack tried nothing here".to_owned())
        } else if passed.is_empty() {
            Ok(readiness::summary(&attempts, Some(protection)))
        } else {
            Err(format!("the self-attack got through: {}", passed.join("; ")))
        }
    }
}

/// Registers every protection; the first that does not hold, and was not given up, stops the boot.
pub(super) fn register(innkeeper: &Arc<Innkeeper>, attack: &Attack, sealed: &Sealed) -> Result<(), Trouble> {
    let Some(firewall) = innkeeper.firewall.get() else {
        return Err(Trouble::unfit("there is no firewall", "please report this"));
    };
    let checks: [(&'static str, Verify); 8] = [
        ("egress-ipv4", egress(firewall, attack, "egress-ipv4", innkeeper.closed_ipv4.get())),
        ("egress-ipv6", egress_ipv6(innkeeper, firewall, attack)),
        ("dns", dns(innkeeper, attack)),
        ("gate", gate(innkeeper, attack)),
        ("rootfs", rootfs(sealed, attack)),
        ("host-doors", by_attack(attack, "host-doors", "covered")),
        ("agent", by_attack(attack, "agent", "uid, no caps, seccomp")),
        ("control", by_attack(attack, "control", "peer uid")),
    ];
    for (name, verify) in checks {
        let accepted = innkeeper.config.boot.accepts(name);
        innkeeper
            .board()
            .protect(name, accepted, verify)
            .map_err(|found| Trouble::unfit(format!("{name}: {found}"), remedy(name)))?;
    }
    Ok(())
}

/// Others are routed through this network namespace: known and given up, so it stays in `status`.
pub(super) fn give_up_network(innkeeper: &Innkeeper, why: String) {
    let name = "shared-network";
    innkeeper.board().warn(format!("{why}: accepted by boot.accept={name}"));
    // An accepted one stops nothing.
    drop(innkeeper.board().protect(name, true, Arc::new(move || Err(why.clone()))));
}

/// What the operator does about a protection that was attacked and did not hold.
#[must_use]
pub fn remedy(name: &str) -> String {
    let promise = "the box is not what it promises, so no agent was started";
    if !PROTECTIONS.iter().any(|protection| protection.word == name) {
        return format!(
            "{promise}, and this protection can't be given up: see what `innkeeper doctor` says of this host"
        );
    }
    let how = match name {
        "host-doors" => {
            "leave the door's mount out (-v …), or add --cap-add SYS_ADMIN, by which innkeeper covers it"
        }
        "rootfs" => "add --read-only, or --cap-add SYS_ADMIN, by which innkeeper makes it so",
        _ => "see what `innkeeper doctor` says of this host",
    };
    format!("{promise}: {how}; if you can live with it: INNKEEPER_BOOT_ACCEPT={name}")
}

fn egress_ipv6(innkeeper: &Innkeeper, firewall: &Firewall, attack: &Attack) -> Verify {
    match innkeeper.unfiltered_ipv6.get().cloned() {
        None => egress(firewall, attack, "egress-ipv6", innkeeper.closed_ipv6.get()),
        // Also where an attack had no way out to try.
        Some(why) => Arc::new(move || Err(format!("nothing filters IPv6: {why}"))),
    }
}

fn egress(firewall: &Firewall, attack: &Attack, name: &'static str, closed: Option<&String>) -> Verify {
    let (firewall, attack, closed) = (firewall.clone(), attack.clone(), closed.cloned());
    Arc::new(move || {
        let live = firewall.verify()?;
        let tried = attack.judge(name)?;
        let (how, why) = match &closed {
            None => (firewall.backend(), String::new()),
            Some(why) => (format!("{}, closed", firewall.backend()), format!("; it opens to nobody: {why}")),
        };
        Ok(Held::by(how).detail(format!("{tried}, {live}{why}")))
    })
}

fn dns(innkeeper: &Arc<Innkeeper>, attack: &Attack) -> Verify {
    let (innkeeper, attack) = (Arc::clone(innkeeper), attack.clone());
    Arc::new(move || {
        let Some(keeper) = innkeeper.keeper.get() else { return Err("no resolver".to_owned()) };
        let up = keeper.verify()?;
        let tried = attack.judge("dns")?;
        Ok(Held::by("allowlist").detail(format!("{tried}; {up}")))
    })
}

fn gate(innkeeper: &Arc<Innkeeper>, attack: &Attack) -> Verify {
    let (innkeeper, attack) = (Arc::clone(innkeeper), attack.clone());
    Arc::new(move || {
        let Some(keeper) = innkeeper.gate.get() else { return Err("no gate".to_owned()) };
        let up = keeper.verify()?;
        let tried = attack.judge("gate")?;
        Ok(Held::by("names shown").detail(format!("{tried}; {up}")))
    })
}

fn rootfs(sealed: &Sealed, attack: &Attack) -> Verify {
    let (sealed, attack) = (sealed.clone(), attack.clone());
    Arc::new(move || {
        let left = filesystem::seal::verify(sealed.writable())?;
        let tried = attack.judge("rootfs")?;
        let how = if left.is_empty() { "read-only mounts" } else { "file modes" };
        Ok(Held::by(how).detail(tried))
    })
}

fn by_attack(attack: &Attack, name: &'static str, how: &'static str) -> Verify {
    let attack = attack.clone();
    Arc::new(move || Ok(Held::by(how).detail(attack.judge(name)?)))
}

/// What the box holds, and what of it the agent can read: said, not hidden.
pub(crate) fn show_secrets(innkeeper: &Innkeeper) {
    let shown = |credential: &Credential| SecretHeld {
        name: credential.name.as_str().to_owned(),
        source: credential.source.as_str().to_owned(),
        held_by: credential.held_by.as_str().to_owned(),
        // The helper gives its value to whoever runs as the agent; until the broker holds it, that is reading it.
        agent_can_read: credential.held_by != Holder::Broker,
    };
    let held = innkeeper.with_config(|config| config.secrets.iter().map(shown).collect());
    innkeeper.board().update(|report| report.secrets = held);
}
