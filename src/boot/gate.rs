//! The step that lets connections to gated ports out: the worker `gate`, behind rules that are in force already.

use std::sync::Arc;
use std::time::Duration;

use super::GATE;
use super::network::means;
use super::step::{Failure, Steps, Trouble, Verified};
use crate::gate::keeper::{Keeper, Plan, Sockets};
use crate::gate::verdict::UNSEEN;
use crate::innkeeper::Innkeeper;

/// Connections on which nothing moves, and those that are so old, end.
const IDLE: Duration = Duration::from_secs(3600);
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The worker says that it serves within milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Behind rules that open gated ports to it alone: nothing passes there before.
pub(super) fn gate(innkeeper: &Arc<Innkeeper>, steps: &Steps, doors: Sockets) -> Result<(), Failure> {
    let plan = Plan {
        agent_uid: innkeeper.accounts.agent.uid,
        proxy: innkeeper.config.network.proxy.clone(),
        idle: IDLE,
        lifetime: LIFETIME,
        attributor: innkeeper.attributor.clone(),
    };
    let doors = std::cell::Cell::new(Some(doors));
    steps.run(
        GATE,
        || Ok(plan),
        |plan| {
            let Some(doors) = doors.take() else { return Ok(()) };
            let rules = Arc::<Innkeeper>::clone(innkeeper);
            let means = means(innkeeper, &innkeeper.accounts.gate);
            let started = Keeper::start(plan.clone(), doors, innkeeper.standing(), rules, means);
            let (keeper, served) = started.map_err(|error| Trouble::internal(&error))?;
            drop(innkeeper.gate.set(keeper));
            // Whether it does is looked at below.
            served.recv_timeout(LIMIT).ok();
            Ok(())
        },
        |_| {
            let serving = innkeeper.gate.get().map(Keeper::verify);
            let up = serving.unwrap_or_else(|| Err("it was not started".to_owned()));
            up.map_err(|found| Trouble::unfit(found, "please report this, with the lines above"))?;
            let ports: Vec<String> = innkeeper.allowlist().gated_ports().iter().map(u16::to_string).collect();
            let (how, detail) = match innkeeper.proxy.get() {
                None => ("redirect", format!("TCP {} by the name that is shown", ports.join(", "))),
                Some(proxy) => ("proxy", format!("the only way out is to ask {proxy}")),
            };
            innkeeper.board().update(|report| {
                report.gate.how = how.to_owned();
                report.gate.unseen = format!("{UNSEEN} (domain fronting)");
            });
            Ok(Verified::new((), detail))
        },
    )
}
