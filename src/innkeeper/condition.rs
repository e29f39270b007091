//! How the box is besides its policy, for `status`: what is used up, and what was carried where.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Innkeeper;
use crate::filesystem::layout::Mount;
use crate::report::chain;
use crate::resources::warnings::warnings;
use crate::status::report::Report;
use crate::traffic::Meter;

/// Shared memory is writable for everybody, and its pages are the box's memory.
const SHARED_MEMORY: &str = "/dev/shm";

impl Innkeeper {
    /// Looks after memory and places from here on.
    pub fn watch_resources(&self, places: &[Mount]) -> std::io::Result<()> {
        let places = places.iter().map(|place| place.path.clone());
        let places: Vec<PathBuf> = places.chain([PathBuf::from(SHARED_MEMORY)]).collect();
        self.resources.start(&places)
    }

    /// Counts octets from here on. A kernel that does not tell costs the numbers and nothing else.
    pub fn measure_traffic(self: &Arc<Self>) {
        let innkeeper = Arc::clone(self);
        let names = move |pairs: &[(IpAddr, u16)]| {
            let count = pairs.len();
            let claims =
                innkeeper.firewall.get().map(|firewall| firewall.claims(pairs.to_vec())).unwrap_or_default();
            let first = claims.into_iter().map(|names| names.first().map(ToString::to_string));
            first.chain(std::iter::repeat(None)).take(count).collect()
        };
        let innkeeper = Arc::clone(self);
        let gated = move || match innkeeper.gate.get() {
            Some(_) => innkeeper.allowlist().gated_ports(),
            None => Vec::new(),
        };
        let meter = Meter::start(Arc::new(names), Arc::new(gated))
            .map_err(|error| format!("not measured: {}", chain(&error)));
        // Set once, by the boot.
        drop(self.meter.set(meter));
    }

    pub(super) fn add_condition(&self, report: &mut Report) {
        report.resources = self.resources.report();
        // These go away again by themselves, so they are made anew each time.
        report.warnings.extend(warnings(&report.resources));
        match self.meter.get() {
            Some(Ok(meter)) => {
                let measured = meter.report();
                (report.traffic, report.traffic_note) = (measured.traffic, measured.note);
            }
            Some(Err(why)) => report.traffic_note = Some(why.clone()),
            None => report.traffic_note = Some("not measured yet".to_owned()),
        }
        if let Some(gate) = self.gate.get() {
            report.traffic.extend(gate.traffic());
            report.traffic.sort_by_key(|row| std::cmp::Reverse((row.bytes_out, row.bytes_in)));
        }
    }
}
