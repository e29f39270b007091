//! History as bundles: the chain that is there is used as long as nothing is new, and grows by what is.

use std::fs::File;
use std::io::Read;
use std::io::{BufRead, BufReader, Seek, SeekFrom};

use crate::persist::git::{Git, Input};
use crate::persist::manifest::{History, Object, ObjectId, Repository};
use crate::persist::store::Store;
use crate::persist::{PersistError, at};

/// A longer chain begins anew.
const MOST_STEPS: usize = 12;
/// So does one whose steps have become larger than this share of its base.
const STEPS_OF_BASE: u64 = 2;
/// Small repositories are not counted so closely.
const SMALL: u64 = 4 << 20;
/// The list of refs at the beginning of a bundle.
const MOST_HEADER: u64 = 64 << 20;

/// The bundles by which this history can be made again; as many of the last save's as possible.
pub(super) fn chain(
    store: &mut Store,
    git: &Git,
    history: &History,
    last: Option<&Repository>,
) -> Result<Vec<Object>, PersistError> {
    if history.tips().is_empty() {
        return Ok(Vec::new());
    }
    // Where the clone ends must be the same, or the chain has other ends.
    let last = last.filter(|last| {
        let same =
            last.history.object_format == history.object_format && last.history.shallow == history.shallow;
        same && !last.bundles.is_empty() && last.bundles.iter().all(|bundle| store.has(bundle))
    });
    let Some(last) = last else {
        return Ok(vec![make(store, git, &[])?.ok_or(PersistError::Unfit("no objects"))?]);
    };
    if last.history.tips() == history.tips() {
        return reuse(store, &last.bundles);
    }
    let (base, steps) = last.bundles.split_first().map_or((0, 0), |(base, steps)| {
        (base.size, steps.iter().fold(0_u64, |sum, step| sum.saturating_add(step.size)))
    });
    if last.bundles.len() > MOST_STEPS || steps > (base / STEPS_OF_BASE).max(SMALL) {
        return Ok(vec![make(store, git, &[])?.ok_or(PersistError::Unfit("no objects"))?]);
    }
    let known = present(git, &last.history)?;
    let step = make(store, git, &known)?;
    let mut chain = reuse(store, &last.bundles)?;
    chain.extend(step);
    Ok(chain)
}

fn reuse(store: &mut Store, bundles: &[Object]) -> Result<Vec<Object>, PersistError> {
    for bundle in bundles {
        store.reuse(bundle)?;
    }
    Ok(bundles.to_vec())
}

/// Those of its ends that the repository still has: an object that was thrown away can't be left out.
fn present(git: &Git, history: &History) -> Result<Vec<String>, PersistError> {
    let tips: Vec<&str> = history.tips().into_iter().map(ObjectId::as_str).collect();
    let asked = Input::Bytes(format!("{}\n", tips.join("\n")).into_bytes());
    let answer = git.text(&["cat-file", "--batch-check=%(objectname) %(objecttype)"], asked)?;
    let known = answer.lines().filter(|line| !line.ends_with(" missing"));
    Ok(known.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect())
}

/// A bundle of everything that these do not have; none where that is nothing.
fn make(store: &mut Store, git: &Git, known: &[String]) -> Result<Option<Object>, PersistError> {
    let input: String = known.iter().map(|id| format!("^{id}\n")).collect();
    let args = ["bundle", "create", "-q", "-", "--all", "--stdin"];
    let (stdout, running) = git.start(&args, Input::Bytes(input.into_bytes()))?;
    let put = store.put(stdout);
    match running.end() {
        Err(PersistError::Git { said, .. }) if said.contains("empty bundle") => Ok(None),
        Err(error) => Err(put.err().unwrap_or(error)),
        Ok(()) => Ok(Some(put?)),
    }
}

/// Puts the objects of a bundle into a repository. Its refs are not believed: the manifest has them.
pub(super) fn unpack(git: &Git, bundle: File) -> Result<(), PersistError> {
    let failed = || at("read", "a bundle");
    let mut header = BufReader::new((&bundle).take(MOST_HEADER));
    let mut offset = 0_u64;
    loop {
        let mut line = Vec::new();
        let read = header.read_until(b'\n', &mut line).map_err(failed())?;
        offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        match line.as_slice() {
            b"\n" => break,
            [.., b'\n'] => {}
            _ => return Err(PersistError::Unfit("no objects in a bundle")),
        }
    }
    let mut pack = bundle;
    pack.seek(SeekFrom::Start(offset)).map_err(failed())?;
    // The file's position is the child's: it reads from there.
    git.ask(&["index-pack", "--stdin", "--fix-thin"], Input::File(pack)).map(drop)
}
