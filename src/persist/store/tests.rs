use super::{KEPT, Store};
use crate::persist::PersistError;
use crate::persist::manifest::{Manifest, Object, SCHEMA};
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

fn volume(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("innkeeper-store-{name}-{}", std::process::id()));
    drop(fs::remove_dir_all(&path));
    fs::create_dir_all(&path).unwrap();
    path
}

fn manifest(claude: Object, saved_at: u64) -> Manifest {
    Manifest {
        schema: SCHEMA,
        saved_at,
        repositories: Vec::new(),
        conversation: Vec::new(),
        claude: Some(claude),
        working: false,
        prompt: None,
    }
}

fn object_path(volume: &Path, object: &Object) -> PathBuf {
    let (directory, rest) = object.sha256.as_str().split_at(2);
    volume.join("innkeeper/objects").join(directory).join(rest)
}

fn count(directory: &Path) -> usize {
    let below = |path: PathBuf| if path.is_dir() { count(&path) } else { 1 };
    fs::read_dir(directory).unwrap().map(|entry| below(entry.unwrap().path())).sum()
}

#[test]
fn the_last_saves_are_kept_and_what_none_of_them_names_goes() {
    let volume = volume("kept");
    for number in 0..KEPT as u64 + 3 {
        let mut store = Store::open(&volume, 1 << 20).unwrap();
        let object = store.put(format!("content {number}").as_bytes()).unwrap();
        store.put(&b"nobody names this"[..]).unwrap();
        store.commit(&manifest(object, number)).unwrap();
    }
    let store = Store::open(&volume, 1 << 20).unwrap();
    let saves = store.saves().unwrap();
    assert_eq!(saves.len(), KEPT);
    assert_eq!(store.read(&saves[0]).unwrap().saved_at, KEPT as u64 + 2);
    assert_eq!(count(&volume.join("innkeeper/objects")), KEPT);
    assert!(matches!(Store::open(&volume, 1).unwrap_err(), PersistError::Busy), "one at a time");
    drop(store);
    assert_eq!(fs::read_dir(volume.join("innkeeper")).unwrap().count(), 4, "no work is left");
    fs::remove_dir_all(volume).unwrap();
}

/// A save that is cut off before its end: the one before is whole, and what was cut off goes with the next.
#[test]
fn a_save_that_is_cut_off_is_none() {
    let volume = volume("cut");
    let mut store = Store::open(&volume, 1 << 20).unwrap();
    let object = store.put(&b"first"[..]).unwrap();
    store.commit(&manifest(object.clone(), 1)).unwrap();
    drop(store);
    let mut store = Store::open(&volume, 1 << 20).unwrap();
    let lost = store.put(&b"second"[..]).unwrap();
    drop(store);
    // As SIGKILL leaves it: no destructor runs.
    let held = volume.join("innkeeper/work-1");
    fs::create_dir_all(held.join("scratch/refs")).unwrap();
    fs::write(held.join("new-9"), "half").unwrap();
    let mut store = Store::open(&volume, 1 << 20).unwrap();
    assert!(!held.exists(), "leftovers are cleared");
    let saves = store.saves().unwrap();
    assert_eq!((saves.len(), store.read(&saves[0]).unwrap().saved_at), (1, 1));
    store.get(&object).unwrap();
    store.commit(&manifest(object, 2)).unwrap();
    assert!(!object_path(&volume, &lost).exists());
    fs::remove_dir_all(volume).unwrap();
}

#[test]
fn t206_an_object_that_is_not_what_its_name_says_is_refused_and_set_aside() {
    let volume = volume("wrong");
    let mut store = Store::open(&volume, 1 << 20).unwrap();
    let object = store.put(&b"right"[..]).unwrap();
    let path = object_path(&volume, &object);
    let mut text = String::new();
    store.get(&object).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "right");
    fs::remove_file(&path).unwrap();
    fs::write(&path, "wrong").unwrap();
    assert!(store.has(&object), "the size alone does not tell");
    assert!(matches!(store.get(&object).unwrap_err(), PersistError::Damaged { .. }));
    assert!(!path.exists() && volume.join("innkeeper/aside").join(object.sha256.as_str()).exists());
    fs::write(&path, "wrong").unwrap();
    let mut to = fs::File::create(volume.join("to")).unwrap();
    assert!(matches!(store.copy_to(&object, &mut to).unwrap_err(), PersistError::Damaged { .. }));
    fs::write(&path, "much longer than it should be").unwrap();
    assert!(store.get(&object).is_err() && !store.has(&object));
    drop(store);
    fs::remove_dir_all(volume).unwrap();
}

#[test]
fn t206_nothing_but_files_is_opened_in_a_store() {
    let volume = volume("odd");
    let mut store = Store::open(&volume, 1 << 20).unwrap();
    let object = store.put(&b"right"[..]).unwrap();
    let path = object_path(&volume, &object);
    let secret = volume.join("secret");
    fs::write(&secret, "right").unwrap();
    fs::remove_file(&path).unwrap();
    symlink(&secret, &path).unwrap();
    assert!(store.get(&object).is_err() && !store.has(&object), "a link with the right content");
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(store.get(&object).is_err(), "a FIFO does not hang us");
    fs::remove_file(&path).unwrap();
    let directory = path.parent().unwrap().to_owned();
    fs::remove_dir(&directory).unwrap();
    symlink("/tmp", &directory).unwrap();
    assert!(store.get(&object).is_err(), "a directory that is a link");
    assert!(store.put(&b"right"[..]).is_err(), "nothing is written through it");
    drop(store);
    fs::remove_dir_all(volume.join("innkeeper/saves")).unwrap();
    symlink("/tmp", volume.join("innkeeper/saves")).unwrap();
    assert!(Store::open(&volume, 1).is_err());
    fs::remove_dir_all(volume.join("innkeeper")).unwrap();
    symlink("/tmp", volume.join("innkeeper")).unwrap();
    assert!(Store::open(&volume, 1).is_err());
    assert_eq!(fs::read_to_string(&secret).unwrap(), "right");
    fs::remove_dir_all(volume).unwrap();
}

#[test]
fn t206_a_manifest_counts_by_its_name_and_content() {
    let volume = volume("manifest");
    let mut store = Store::open(&volume, 1 << 20).unwrap();
    let object = store.put(&b"x"[..]).unwrap();
    store.commit(&manifest(object, 1)).unwrap();
    let saves = volume.join("innkeeper/saves");
    for name in ["x.json", "9-x.json", &format!("{}-{}.json", u64::MAX, "0".repeat(64)), "99-.json", "..."] {
        fs::write(saves.join(name), "{}").unwrap();
    }
    assert_eq!(store.saves().unwrap().len(), 1, "names that are none of ours");
    let real = saves.join(&store.saves().unwrap()[0].name);
    let text = fs::read_to_string(&real).unwrap().replace("\"saved_at\":1", "\"saved_at\":2");
    fs::write(&real, text).unwrap();
    let save = store.saves().unwrap().remove(0);
    assert!(matches!(store.read(&save).unwrap_err(), PersistError::Damaged { .. }));
    store.set_aside(&save).unwrap();
    assert!(store.saves().unwrap().is_empty() && volume.join("innkeeper/aside").join(&save.name).exists());
    drop(store);
    fs::remove_dir_all(volume).unwrap();
}

#[test]
fn nothing_grows_beyond_the_limit() {
    let volume = volume("limit");
    let mut store = Store::open(&volume, 100).unwrap();
    store.put(&[1; 60][..]).unwrap();
    assert!(matches!(store.put(&[2; 60][..]).unwrap_err(), PersistError::TooLarge { .. }));
    assert!(matches!(store.put(std::io::repeat(3)).unwrap_err(), PersistError::TooLarge { .. }));
    assert_eq!(count(store.work_path()), 0);
    drop(store);
    // Old saves make room for new ones.
    for number in 0..3_u8 {
        let mut store = Store::open(&volume, 100).unwrap();
        let object = store.put(&[number; 60][..]).unwrap();
        store.commit(&manifest(object, 1)).unwrap();
        assert_eq!(store.saves().unwrap().len(), 1);
    }
    assert_eq!(count(&volume.join("innkeeper/objects")), 1);
    fs::remove_dir_all(volume).unwrap();
}
