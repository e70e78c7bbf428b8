//! What may be loaded: `plugins.lock`, the trial in a process of its own, and word left for the
//! next process.
#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

mod common;

use std::process::{Command, Stdio};

use camino::{Utf8Path, Utf8PathBuf};
use common::{ANYWHERE, Folder, cc, child_program};
use llmpick_plugin_host::{
    Library, LoadOptions, LockError, PluginLock, TrustedBy, use_child_program,
};

/// Builds the smallest library with this version in it: other versions, other bytes.
fn plugin(folder: &Folder, name: &str, version: &str) -> Utf8PathBuf {
    let flag = format!("-DVERSION=\"{version}\"");
    cc(folder, "tests/plugins/module.c", name, &[&flag])
}

fn broken(folder: &Folder, fault: &str) -> Utf8PathBuf {
    let flag = format!("-DFAULT={fault}");
    cc(
        folder,
        "tests/plugins/module.c",
        &format!("{fault}.so"),
        &[&flag],
    )
}

fn options(lock: &PluginLock) -> LoadOptions {
    LoadOptions {
        lock: Some(lock.clone()),
        ..ANYWHERE
    }
}

fn lock(folder: &Folder) -> PluginLock {
    PluginLock::at(folder.path().join("state"))
}

fn refusal(path: &Utf8Path, options: &LoadOptions) -> String {
    match Library::load(path, options) {
        Ok(library) => panic!("`{path}` was loaded: {library:?}"),
        Err(error) => error.kind.to_string(),
    }
}

/// Another process that loads these files and makes a router of each.
fn elsewhere(folder: &Folder, files: &[&Utf8Path], crash: bool) -> (bool, String) {
    let mut command = Command::new(child_program());
    command.arg("load").arg(folder.path().join("state"));
    command.args(files).stderr(Stdio::null());
    if crash {
        command.env("LLMPICK_TEST_CRASH", "1");
    }
    let output = command.output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), out.trim().to_owned())
}

#[test]
fn first_use_is_recorded_and_a_change_is_refused_until_it_is_trusted() {
    let folder = Folder::new();
    let lock = lock(&folder);
    assert_eq!(lock.list().unwrap(), []);
    let path = plugin(&folder, "p.so", "1.0.0");
    let real = path.canonicalize_utf8().unwrap();
    let first = Library::load(&path, &options(&lock)).unwrap();
    let pins = lock.list().unwrap();
    assert_eq!(pins.len(), 1);
    assert_eq!(
        (&pins[0].path, pins[0].sha256.as_str()),
        (&real, first.sha256())
    );
    assert_eq!(pins[0].trusted_by, TrustedBy::FirstUse);
    assert!(pins[0].first_seen > 1_700_000_000);
    plugin(&folder, "p.so", "1.0.1");
    let refused = refusal(&path, &options(&lock));
    let remedy = format!("run `llmpick plugin trust {real}`");
    assert!(
        refused.starts_with("it changed since it was trusted"),
        "{refused}"
    );
    assert!(refused.ends_with(&remedy), "{refused}");
    // The refusal changed nothing, and it stays a refusal.
    assert_eq!(lock.list().unwrap(), pins);
    assert_eq!(refusal(&path, &options(&lock)), refused);
    let pin = lock.trust(&path).unwrap();
    assert_eq!(pin.trusted_by, TrustedBy::User);
    let second = Library::load(&path, &options(&lock)).unwrap();
    assert_eq!(
        (second.sha256(), second.plugins()[0].version.as_str()),
        (pin.sha256.as_str(), "1.0.1")
    );
    assert_ne!(second.sha256(), first.sha256());
    // Forgotten, its next use is a first one.
    assert!(lock.forget(&path).unwrap());
    assert!(!lock.forget(&path).unwrap());
    plugin(&folder, "p.so", "1.0.2");
    Library::load(&path, &options(&lock)).unwrap();
    assert_eq!(lock.list().unwrap()[0].trusted_by, TrustedBy::FirstUse);
}

#[test]
fn pins_can_be_turned_off_and_a_link_does_not_go_around_them() {
    let folder = Folder::new();
    let lock = lock(&folder);
    let path = plugin(&folder, "p.so", "1.0.0");
    Library::load(&path, &options(&lock)).unwrap();
    plugin(&folder, "p.so", "1.0.1");
    let link = folder.path().join("link.so");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(refusal(&link, &options(&lock)).contains("it changed"));
    let loose = lock.clone().pinning(false);
    Library::load(&path, &options(&loose)).unwrap();
    assert_eq!(lock.list().unwrap()[0].trusted_by, TrustedBy::Unpinned);
}

#[test]
fn what_came_with_another_build_of_the_program_is_taken_over() {
    let folder = Folder::new();
    let beside = lock(&folder).shipped_in(vec![folder.path().to_owned()]);
    let path = plugin(&folder, "p.so", "1.0.0");
    Library::load(&path, &options(&beside)).unwrap();
    plugin(&folder, "p.so", "1.0.1");
    // The program is the same: so somebody else changed the plugin.
    assert!(refusal(&path, &options(&beside)).contains("it changed"));
    let file = beside.path();
    let text = std::fs::read_to_string(&file).unwrap();
    let stamp = beside.list().unwrap()[0].program.clone().unwrap();
    std::fs::write(&file, text.replace(&stamp, "1-0.0")).unwrap();
    Library::load(&path, &options(&beside)).unwrap();
    assert_eq!(beside.list().unwrap()[0].trusted_by, TrustedBy::Program);
}

#[test]
fn a_damaged_lock_is_told_and_left_as_it_is() {
    let folder = Folder::new();
    let lock = lock(&folder);
    let path = plugin(&folder, "p.so", "1.0.0");
    Library::load(&path, &options(&lock)).unwrap();
    let good = std::fs::read_to_string(lock.path()).unwrap();
    let hash = lock.list().unwrap()[0].sha256.clone();
    for bad in [
        String::new(),
        "{".to_owned(),
        good[..good.len() / 2].to_owned(),
        good.replace(&hash, "abc"),
        good.replace("first_seen", "frist_seen"),
        good.replace("\"version\": 1", "\"version\": 99"),
    ] {
        std::fs::write(lock.path(), &bad).unwrap();
        let error = lock.list().unwrap_err();
        let refused = refusal(&path, &options(&lock));
        let newer = bad.contains("99");
        assert_eq!(newer, matches!(error, LockError::Newer { .. }), "{error}");
        let says = if newer { "update it" } else { "it is damaged" };
        assert!(refused.contains(says), "{refused}");
        assert!(lock.trust(&path).is_err() && lock.forget(&path).is_err());
        assert_eq!(std::fs::read_to_string(lock.path()).unwrap(), bad);
    }
    // A file of the first version, as it was written then.
    std::fs::write(lock.path(), VERSION_1).unwrap();
    assert_eq!(
        lock.list().unwrap()[0].path,
        "/home/ann/.local/share/llmpick/plugins/p.so"
    );
    assert_eq!(lock.suspects().unwrap().len(), 1);
}

const VERSION_1: &str = include_str!("fixtures/plugins-1.lock");

#[test]
fn processes_at_once_lose_none_of_each_others_pins() {
    let folder = Folder::new();
    let files: Vec<_> = (0..6)
        .map(|n| plugin(&folder, &format!("p{n}.so"), &format!("1.0.{n}")))
        .collect();
    let running: Vec<_> = files
        .iter()
        .map(|file| {
            let mut command = Command::new(child_program());
            command
                .arg("load")
                .arg(folder.path().join("state"))
                .arg(file);
            command.stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in running {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().trim(),
            "first runs"
        );
    }
    assert_eq!(lock(&folder).list().unwrap().len(), 6);
}

#[test]
fn what_does_not_survive_its_trial_is_not_loaded() {
    use_child_program(child_program());
    let folder = Folder::new();
    let lock = lock(&folder);
    let deadline = std::time::Duration::from_secs(1);
    let quick = LoadOptions {
        probe_deadline: deadline,
        ..options(&lock)
    };
    let segv = "its process died of SIGSEGV: it used memory that is not its own";
    let cases = [
        ("CRASH_LOAD", format!("{segv} when it was loaded")),
        (
            "HANG_LOAD",
            "it did not answer within 1s when it was loaded".to_owned(),
        ),
        (
            "EXIT_LOAD",
            "it ended its process with code 0 when it was loaded".to_owned(),
        ),
        (
            "ABORT_CREATE",
            "its process died of SIGABRT: it gave up (it said: cannot go on) when `first` was made"
                .to_owned(),
        ),
        (
            "HANG_CREATE",
            "it did not answer within 1s when `first` was made".to_owned(),
        ),
        ("CRASH_DESTROY", format!("{segv} when `first` was made")),
    ];
    for (fault, expected) in cases {
        let path = broken(&folder, fault);
        let sentence = format!(
            "it was tried out in a process of its own, and {expected}: it is not loaded here"
        );
        assert_eq!(refusal(&path, &quick), sentence, "{fault}");
        let probed = Library::probe(&path, &quick).unwrap_err();
        assert_eq!(probed.kind.to_string(), sentence, "{fault}");
    }
    assert_eq!(lock.list().unwrap(), [], "nothing of it is trusted");
    // One that only wants settings is no danger.
    let path = broken(&folder, "WANTS_CONFIG");
    let report = Library::probe(&path, &quick).unwrap();
    assert_eq!(report.plugins[0].0.name, "first");
    assert_eq!(report.plugins[0].1.as_deref(), Some("needs a secret"));
    Library::load(&path, &quick).unwrap();
    // What breaks a rule is refused in the same words as without the trial.
    let path = broken(&folder, "WRONG_MAGIC");
    assert_eq!(refusal(&path, &quick), refusal(&path, &ANYWHERE));
}

#[test]
fn a_library_that_killed_a_process_is_quarantined_until_it_is_trusted() {
    let folder = Folder::new();
    for fault in ["CRASH_HERE", "CRASH_CREATE_HERE"] {
        // It behaves on trial, and crashes where it is loaded for good.
        let path = broken(&folder, fault);
        let (survived, _) = elsewhere(&folder, &[&path], true);
        assert!(!survived, "{fault}");
        // It would behave now, but nobody can know.
        let (survived, said) = elsewhere(&folder, &[&path], false);
        let real = path.canonicalize_utf8().unwrap();
        let expected = format!(
            "llmpick died while it loaded this very file, so it is quarantined: if it is not to \
             blame, run `llmpick plugin trust {real}`"
        );
        assert_eq!((survived, said), (true, expected));
        let lock = lock(&folder);
        assert_eq!(lock.suspects().unwrap()[0].path, real);
        lock.trust(&path).unwrap();
        assert_eq!(lock.suspects().unwrap(), []);
        let (survived, said) = elsewhere(&folder, &[&path], false);
        assert_eq!((survived, said.as_str()), (true, "first runs"));
    }
}

#[test]
fn others_must_not_be_able_to_change_what_is_trusted() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let path = plugin(&folder, "p.so", "1.0.0");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    let error = lock(&folder).trust(&path).unwrap_err();
    assert!(
        error.kind.to_string().contains("chmod go-w"),
        "{}",
        error.kind
    );
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    let lock = lock(&folder);
    lock.trust(&path).unwrap();
    let mode = std::fs::metadata(lock.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
