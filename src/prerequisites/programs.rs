//! The programs of the image that a box can't work without.

use std::path::{Path, PathBuf};

use super::Lack;
use crate::config::Config;
use crate::filesystem::layout::{TMP, WORKSPACE};
use crate::identity::home::SKELETON;
use crate::session::{self, TMUX_CONF};

/// What runs in the session unless the operator said otherwise.
pub const CLAUDE: &str = "/usr/local/bin/claude";
/// Where the agent and the workers look for programs.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const IMAGE: &str = "build the image from innkeeper's Dockerfile";

/// Something of the image, and why it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    pub path: PathBuf,
    pub purpose: &'static str,
    pub next: String,
}

impl Needed {
    #[must_use]
    pub fn lack(&self) -> Option<Lack> {
        // Its link may lead to nothing.
        let what = || format!("{} is missing in the image: {}", self.path.display(), self.purpose);
        (!self.path.exists()).then(|| Lack::new(what(), self.next.clone()))
    }
}

/// A program by its name, in the image's PATH; where it isn't, the place where it should be.
#[must_use]
pub fn found(name: &str) -> PathBuf {
    let places = || PATH.iter().map(|directory| Path::new(directory).join(name));
    places().find(|path| path.exists()).unwrap_or_else(|| Path::new("/usr/bin").join(name))
}

/// What this configuration needs. A program of the operator's own in the agent's places may come with a repository.
#[must_use]
pub fn needed(config: &Config, home: &str) -> Vec<Needed> {
    let need = |path: PathBuf, purpose, next: &str| Needed { path, purpose, next: next.to_owned() };
    let mut needs = vec![
        need(session::tmux().into(), "the session runs in it", IMAGE),
        need(TMUX_CONF.into(), "tmux is configured by it", IMAGE),
        need(SKELETON.into(), "the agent's home is made from it", IMAGE),
    ];
    if !config.repositories.is_empty() {
        needs.push(need(
            found("git"),
            "a repository is to be cloned",
            "install git in the image, or leave out REPO_URL",
        ));
    }
    match config.session.command.first().map(PathBuf::from) {
        None => needs.push(need(
            CLAUDE.into(),
            "it is what runs in the session",
            "build the image from innkeeper's Dockerfile, or name another program in session.command",
        )),
        Some(program)
            if program.is_relative()
                || [WORKSPACE, TMP, home].iter().any(|place| program.starts_with(place)) => {}
        Some(program) => {
            needs.push(need(program, "session.command names it", "name a program that the image has"));
        }
    }
    needs
}

#[must_use]
pub fn lacks(config: &Config, home: &str) -> Vec<Lack> {
    let relative = config.session.command.first().filter(|program| !Path::new(program).is_absolute());
    let relative = relative
        .map(|_| Lack::new("session.command is not an absolute path", "write the program's whole path"));
    relative.into_iter().chain(needed(config, home).iter().filter_map(Needed::lack)).collect()
}

/// The oldest tmux that has what the session asks for.
const TMUX_OLDEST: (u32, u32) = (3, 3);
/// The oldest that draws Claude Code without flicker (synchronized output).
const TMUX_STEADY: (u32, u32) = (3, 6);

/// Reads what `tmux -V` says: `tmux 3.6a`, `tmux next-3.7`.
#[must_use]
pub fn tmux_version(said: &str) -> Option<(u32, u32)> {
    // The loader may have said something before.
    let number = said.lines().find_map(|line| line.strip_prefix("tmux "))?.trim().trim_start_matches("next-");
    let (major, minor) = number.split_once('.')?;
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, digits.parse().ok()?))
}

/// A tmux that is too old, or that can't be asked.
#[must_use]
pub fn tmux_lack(said: &str) -> Option<Lack> {
    match tmux_version(said) {
        Some(version) if version >= TMUX_OLDEST => None,
        Some((has, minor)) => {
            Some(Lack::new(format!("tmux {has}.{minor} is too old for the session"), newer_tmux()))
        }
        None => Some(Lack::new(format!("tmux does not say its version: {:?}", said.trim()), newer_tmux())),
    }
}

/// What is less pleasant with a tmux that will do.
#[must_use]
pub fn tmux_flickers(said: &str) -> Option<Lack> {
    let (has, minor) = tmux_version(said).filter(|version| *version < TMUX_STEADY)?;
    Some(Lack::new(format!("tmux {has}.{minor} draws Claude Code with flicker"), newer_tmux()))
}

fn newer_tmux() -> String {
    let (major, minor) = TMUX_STEADY;
    format!("install tmux {major}.{minor} or newer in the image (Debian has it in backports)")
}

#[cfg(test)]
mod tests {
    use super::{tmux_flickers, tmux_lack, tmux_version};

    #[test]
    fn versions_of_tmux_are_compared_as_numbers() {
        assert_eq!(tmux_version("tmux 3.6a\n"), Some((3, 6)));
        assert_eq!(tmux_version("tmux next-3.7"), Some((3, 7)));
        assert_eq!(tmux_version("tmux 3.10"), Some((3, 10)));
        assert_eq!(tmux_version("ld.so: a preload is ignored\ntmux 3.7c\n"), Some((3, 7)));
        for fit in ["tmux 3.6", "tmux 3.10", "tmux 4.0"] {
            assert_eq!((tmux_lack(fit), tmux_flickers(fit)), (None, None), "{fit}");
        }
        assert!(tmux_lack("tmux 3.5a").is_none() && tmux_flickers("tmux 3.5a").is_some());
        for unfit in ["tmux 3.2a", "tmux 2.9", "", "tmux master"] {
            assert!(tmux_lack(unfit).unwrap().next.contains("3.6 or newer"), "{unfit}");
        }
    }
}
