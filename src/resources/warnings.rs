//! When what is used up deserves a word: a warning in `status` as long as it is so, an event when it begins and when it
//! ends. (pure)

use std::collections::BTreeSet;

use crate::status::report::{Fill, Resources};

/// From here on it is a warning.
const FULL: u64 = 90;
/// It has ended here: around the border nothing is told again and again.
const ROOM: u64 = 85;

/// Hundredths that are used, rounded down: 100 is really full.
#[must_use]
pub fn percent(used: u64, of: u64) -> u64 {
    used.saturating_mul(100).checked_div(of).unwrap_or(0)
}

/// Octets for people: "512 MiB", "1.5 GiB".
#[must_use]
pub fn octets(octets: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = octets.saturating_mul(10);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = tenths.saturating_add(512) / 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {name}"),
        (whole, _) if whole >= 100 || unit == 0 => format!("{whole} {name}"),
        (whole, tenth) => format!("{whole}.{tenth} {name}"),
    }
}

/// One thing that can be used up.
struct Level {
    name: String,
    percent: u64,
    /// What it comes to, for people.
    text: String,
}

fn levels(resources: &Resources) -> Vec<Level> {
    let mut levels = Vec::new();
    if let Some((used, limit)) =
        resources.memory.as_ref().and_then(|memory| Some((memory.used, memory.limit?)))
    {
        let text =
            format!("the memory is {} % used ({} of {})", percent(used, limit), octets(used), octets(limit));
        levels.push(Level { name: "memory".to_owned(), percent: percent(used, limit), text });
    }
    for Fill { path, size, used, inodes, inodes_used } in &resources.mounts {
        let full = percent(*used, *size);
        let text = format!("{path} is {full} % full ({} of {})", octets(*used), octets(*size));
        levels.push(Level { name: path.clone(), percent: full, text });
        let full = percent(*inodes_used, *inodes);
        let text = format!("{path} has used {full} % of its {inodes} files and directories");
        levels.push(Level { name: format!("{path} (inodes)"), percent: full, text });
    }
    levels
}

/// What is nearly used up now, for `status`.
#[must_use]
pub fn warnings(resources: &Resources) -> Vec<String> {
    let full = levels(resources).into_iter().filter(|level| level.percent >= FULL);
    full.map(|level| level.text).collect()
}

/// What has been told already.
#[derive(Debug, Default)]
pub struct Alarms {
    told: BTreeSet<String>,
}

impl Alarms {
    /// What is new: once when a level gets high, and once when it is low again.
    pub fn news(&mut self, resources: &Resources) -> Vec<String> {
        let mut news = Vec::new();
        for level in levels(resources) {
            if level.percent >= FULL && self.told.insert(level.name.clone()) {
                news.push(level.text);
            } else if level.percent < ROOM && self.told.remove(&level.name) {
                news.push(format!("{} has room again", level.name));
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::{Alarms, octets, percent, warnings};
    use crate::status::report::{Fill, Memory, Resources};

    fn with(used: u64, inodes_used: u64) -> Resources {
        let fill = Fill { path: "/tmp".into(), size: 512 << 20, used: used << 20, inodes: 1000, inodes_used };
        Resources { mounts: vec![fill], ..Resources::default() }
    }

    #[test]
    fn f17_what_is_nearly_full_is_a_warning_until_it_is_not_and_an_event_once() {
        let mut alarms = Alarms::default();
        assert!(warnings(&with(400, 10)).is_empty() && alarms.news(&with(400, 10)).is_empty());
        let full = with(500, 10);
        assert_eq!(warnings(&full), ["/tmp is 97 % full (500 MiB of 512 MiB)"]);
        assert_eq!(alarms.news(&full).len(), 1);
        assert!(alarms.news(&full).is_empty(), "once");
        let border = with(450, 10);
        assert!(
            warnings(&border).is_empty() && alarms.news(&border).is_empty(),
            "not yet at the lower border"
        );
        assert!(alarms.news(&full).is_empty(), "around the border nothing is told again");
        assert_eq!(alarms.news(&with(100, 10)), ["/tmp has room again"]);
        assert_eq!(alarms.news(&full).len(), 1);
        assert_eq!(warnings(&with(1, 999)), ["/tmp has used 99 % of its 1000 files and directories"]);
    }

    #[test]
    fn memory_without_a_limit_is_never_full() {
        let memory = |limit| Resources { memory: Some(Memory { used: 95, limit }), ..Resources::default() };
        assert!(warnings(&memory(None)).is_empty());
        assert_eq!(warnings(&memory(Some(100))), ["the memory is 95 % used (95 B of 100 B)"]);
        assert!(warnings(&memory(Some(0))).is_empty());
    }

    #[test]
    fn sizes_are_for_people() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "1677721 TiB"),
        ] {
            assert_eq!(octets(size), text);
        }
        assert_eq!((percent(1, 0), percent(999, 1000), percent(u64::MAX, 1)), (0, 99, u64::MAX));
    }
}
