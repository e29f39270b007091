//! How full Claude's context is, as twenty cells. (pure)

/// Cells of the whole bar.
const CELLS: usize = 20;
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// The bar with its number behind it; empty and without one where it is not known.
#[must_use]
pub fn bar(percent: Option<u8>) -> String {
    let Some(percent) = percent.map(|percent| percent.min(100)) else {
        return format!("{DIM}{}{PLAIN}", "░".repeat(CELLS));
    };
    // To the nearest cell.
    let full = (usize::from(percent) * CELLS + 50) / 100;
    let (full, empty) = ("█".repeat(full), "░".repeat(CELLS.saturating_sub(full)));
    format!("{}{full}{DIM}{empty}{PLAIN} {percent} %", colour(percent))
}

/// Up to 65 % there is room, up to 85 % some; beyond it Claude soon makes room by forgetting.
fn colour(percent: u8) -> &'static str {
    match percent {
        0..=65 => GREEN,
        66..=85 => YELLOW,
        86.. => RED,
    }
}

#[cfg(test)]
mod tests {
    use super::{GREEN, RED, YELLOW, bar};

    #[test]
    fn colours_change_above_65_and_85() {
        for (percent, colour) in
            [(0, GREEN), (65, GREEN), (66, YELLOW), (85, YELLOW), (86, RED), (100, RED), (255, RED)]
        {
            let bar = bar(Some(percent));
            assert!(bar.starts_with(colour), "{percent}: {bar:?}");
            assert!(bar.ends_with(&format!(" {} %", percent.min(100))), "{bar:?}");
            assert_eq!(bar.matches(['█', '░']).count(), 20, "{bar:?}");
        }
        for (percent, full) in [(0, 0), (2, 0), (3, 1), (50, 10), (65, 13), (97, 19), (98, 20), (100, 20)] {
            assert_eq!(bar(Some(percent)).matches('█').count(), full, "{percent}");
        }
    }

    #[test]
    fn what_is_not_known_is_empty() {
        let bar = bar(None);
        assert_eq!((bar.matches('░').count(), bar.contains('%')), (20, false));
    }
}
