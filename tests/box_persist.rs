//! Nothing is lost: the work and the conversation outlive the box on a volume at /persist, and whatever an agent has
//! written there does no harm to the next box.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends by panicking; clippy.toml exempts test functions but not what they share"
)]

#[path = "box_persist/conversation.rs"]
mod conversation;
#[path = "box_persist/hostile.rs"]
mod hostile;
#[path = "box_persist/life.rs"]
mod life;
#[path = "support/rig.rs"]
mod rig;

use rig::{BoxOptions, RunningBox};

/// A box with this volume and no clone.
fn with(volume: &str) -> BoxOptions {
    BoxOptions::new().volume(&format!("{volume}:/persist"))
}

/// A repository with something of every kind in it.
const REPOSITORY: &str = "set -e; mkdir -p /workspace/repo; cd /workspace/repo; git init -q; \
    git remote add origin https://github.com/acme/widgets; printf 'one\\n' >f; printf 'x\\n' >g; mkdir -p d/e; echo deep >d/e/deep; \
    echo '*.o' >.gitignore; ln -s f link; git add .; git commit -qm first; git branch topic; git tag -a v1 -m v1; \
    echo stashed >>f; git stash -q; echo second >>g; git stash -q; \
    echo staged >>f; git add f; echo unstaged >>f; printf '#!/bin/sh\\n' >new; chmod +x new; echo a >'sp ü'; \
    git rm -q --cached g; rm -r d; ln -s /etc/passwd d; echo ita >ita; git add -N ita; echo built >i.o";

/// What a person would look at.
const STATE: &str = "cd /workspace/repo; git status --porcelain=v2 --branch; git for-each-ref; git stash list; git remote -v; \
    git diff; git diff --cached; find . -path ./.git -prune -o -type f -not -name '*.o' -print | sort | xargs -d '\\n' sha256sum; \
    find . -path ./.git -prune -o -type l -printf '%p %l\\n' | sort; stat -c '%a' new";

fn state(guest: &RunningBox) -> String {
    guest.exec_agent(STATE).expect("the repository's state")
}

/// The names of the saves on the volume, the newest last.
fn saves(guest: &RunningBox) -> Vec<String> {
    let listed = guest.exec_agent("ls /persist/innkeeper/saves").expect("the saves");
    listed.lines().map(str::to_owned).collect()
}
