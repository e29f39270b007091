//! `network.proxy`: the way out where there is no other. It may hold a password, so it is kept as a secret.

use zeroize::Zeroizing;

use super::Network;
use super::credentials::Seen;
use super::problems::Problem;
use super::provider::PROXY;
use super::raw::Place;
use super::values::Values;
use crate::allowlist::{Origin, check_gated, parse_rule};
use crate::gate::upstream::{Host, Proxy};
use crate::secrets::{Credential, Holder, Secret, SecretName, SecretSource, Secrets};

const KEY: &str = "network.proxy";

/// Reads it, and lets its name through.
pub(super) fn proxy(values: &mut Values, secrets: &mut Secrets, seen: &mut Seen, network: &mut Network) {
    if let Some(found) = values.one(KEY).filter(|found| !found.text.trim().is_empty()) {
        let text = found.text.trim();
        seen.push((PROXY.to_owned(), Zeroizing::new(text.to_owned())));
        if secrets.get(PROXY).is_some_and(|other| other.expose().trim() != text) {
            let message = format!("{PROXY} and {KEY} hold two different values");
            values.problems.push(Problem::new(found.place.to_string(), message, "remove one of them"));
        }
        let source = match &found.place {
            Place::File { path, .. } => SecretSource::File(path.into()),
            Place::Variable(_) | Place::Default => SecretSource::Env,
        };
        let Ok(name) = SecretName::parse(PROXY) else { return };
        let value = Secret::new(text.to_owned());
        secrets.insert(Credential { name, value, source, held_by: Holder::Helper });
    }
    let Some(given) = secrets.get(PROXY) else { return };
    match Proxy::parse(given.expose()) {
        Ok(proxy) => {
            values.problems.extend(admit(&proxy, network));
            network.proxy = Some(proxy);
        }
        Err(error) => {
            let next = "give it as http://HOST:PORT or http://USER:PASSWORD@HOST:PORT";
            values.problems.push(Problem::new(PROXY, format!("is not usable: {error}"), next));
        }
    }
}

/// The rule for a proxy that has a name: `http` has the firewall open its port to the gate alone, not to the agent, and
/// `private` lets it be where proxies are.
fn admit(proxy: &Proxy, network: &mut Network) -> Option<Problem> {
    let Host::Name(host) = &proxy.host else { return None };
    let text = format!("{host}:{} http private", proxy.port);
    let refused = |message: String, next: &str| Some(Problem::new(KEY, message, next));
    let rule = match parse_rule(&text, Origin::Setting { name: KEY.into() }) {
        Ok(rule) => rule,
        Err(error) => return refused(format!("can't be a rule: {error}"), "give another name or port"),
    };
    if !network.ceiling.permits(&rule) {
        return refused(
            format!("is outside of what ceiling.conf permits: {text}"),
            "add that line to ceiling.conf, or use another proxy",
        );
    }
    let fitted = check_gated(&network.rules).is_ok();
    network.rules.push(rule);
    match check_gated(&network.rules) {
        // What did not fit before was said before.
        Err(error) if fitted => refused(error.to_string(), "its port is one of them: mark one rule less"),
        Ok(()) | Err(_) => None,
    }
}
