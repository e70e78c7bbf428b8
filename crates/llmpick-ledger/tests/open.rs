//! Opening what is there, and what is wrong with it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::time::Duration;

use camino::Utf8Path;
use common::{answered, place};
use llmpick_ledger::{CURRENT, Ledger, LedgerErrorKind, LedgerVersion, OpenOptions};

/// What opening says; the file must be byte for byte as before.
fn refused(path: &Utf8Path) -> LedgerErrorKind {
    let before = fs::read(path).unwrap();
    let options = OpenOptions {
        busy_timeout: Duration::from_millis(50),
    };
    let kind = match Ledger::open_with(path, options) {
        Ok(_) => panic!("{path} must not open"),
        Err(error) => error.kind().clone(),
    };
    assert!(fs::read(path).unwrap() == before, "{path} was changed");
    kind
}

#[test]
fn a_ledger_keeps_its_name_seed_and_rows() {
    let (_dir, path) = place();
    let ledger = Ledger::open(&path).unwrap();
    let (id, seed) = (ledger.id().clone(), ledger.base_seed());
    let (route, _) = answered(&ledger, "a", 1.0, "");
    let record = ledger.route(route).unwrap();
    drop(ledger);
    let ledger = Ledger::open(&path).unwrap();
    assert_eq!((ledger.id(), ledger.base_seed()), (&id, seed));
    assert_eq!(
        format!("{:?}", ledger.route(route).unwrap()),
        format!("{record:?}")
    );
    assert_eq!(CURRENT, LedgerVersion(4));
    let other = Ledger::open_in_memory().unwrap();
    assert_ne!(other.id(), &id, "two ledgers are never one");
    drop(ledger);
    let left: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["ledger.db"], "nothing is left lying about");
}

#[test]
fn a_file_of_something_else_is_refused() {
    let (_dir, path) = place();
    fs::write(&path, "Dear diary, ".repeat(1_000)).unwrap();
    assert!(matches!(refused(&path), LedgerErrorKind::NotALedger));

    fs::remove_file(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE songs (id)").unwrap();
    drop(other);
    assert!(matches!(refused(&path), LedgerErrorKind::NotALedger));
}

#[test]
fn damage_is_found_and_nothing_is_deleted() {
    let (_dir, path) = place();
    let ledger = Ledger::open(&path).unwrap();
    for _ in 0..50 {
        answered(&ledger, "a", 1.0, "");
    }
    drop(ledger);
    let whole = fs::read(&path).unwrap();

    let mut scribbled = whole.clone();
    scribbled[8192..20_000].fill(0xa5);
    fs::write(&path, &scribbled).unwrap();
    let kind = refused(&path);
    assert!(matches!(kind, LedgerErrorKind::Corrupt(_)), "{kind:?}");

    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let kind = refused(&path);
    assert!(matches!(kind, LedgerErrorKind::Corrupt(_)), "{kind:?}");
    let error = Ledger::open(&path).unwrap_err();
    assert!(error.to_string().contains("ledger.db"), "{error}");
    assert!(kind.to_string().contains("nothing was deleted"), "{kind}");
}

#[test]
fn a_newer_format_is_refused() {
    let (_dir, path) = place();
    drop(Ledger::open(&path).unwrap());
    let conn = rusqlite::Connection::open(&path).unwrap();
    conn.pragma_update(None, "user_version", 99).unwrap();
    drop(conn);
    let kind = refused(&path);
    assert!(
        matches!(
            kind,
            LedgerErrorKind::Newer {
                found: 99,
                known: 4
            }
        ),
        "{kind:?}"
    );
}

#[test]
fn a_lock_held_too_long_is_named() {
    let (_dir, path) = place();
    drop(Ledger::open(&path).unwrap());
    let holder = rusqlite::Connection::open(&path).unwrap();
    holder
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE")
        .unwrap();
    let kind = refused(&path);
    assert!(matches!(kind, LedgerErrorKind::Locked), "{kind:?}");
    drop(holder);
    assert!(Ledger::open(&path).is_ok());
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let (dir, path) = place();
    let file = path.parent().unwrap().join("file");
    fs::write(&file, "").unwrap();
    let inside = Ledger::open(&file.join("ledger.db")).unwrap_err();
    assert!(
        matches!(inside.kind(), LedgerErrorKind::CannotOpen(_)),
        "{inside:?}"
    );

    drop(Ledger::open(&path).unwrap());
    let mut permissions = fs::metadata(dir.path()).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(dir.path(), permissions.clone()).unwrap();
    if fs::write(dir.path().join("probe"), "").is_ok() {
        println!("skipped: this user may write into read-only folders");
    } else {
        let kind = Ledger::open(&path).unwrap_err().kind().clone();
        let named = matches!(
            kind,
            LedgerErrorKind::ReadOnly | LedgerErrorKind::CannotOpen(_)
        );
        assert!(named, "{kind:?}");
    }
    #[expect(clippy::permissions_set_readonly_false, reason = "a temporary folder")]
    permissions.set_readonly(false);
    fs::set_permissions(dir.path(), permissions).unwrap();
}
