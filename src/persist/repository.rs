//! One repository: how its state becomes a part of a save, and how it comes back.
//!
//! History goes into git bundles, the first whole and further ones on top of it. What is in no commit is kept beside them:
//! the index as a list, changed and new files as they are. Git is asked in a repository of our own that borrows the
//! agent's objects, so that neither its configuration nor its hooks nor its filters have a say, and nothing is written
//! into it.

mod bundle;
pub(super) mod capture;
pub(super) mod rebuild;
mod status;
