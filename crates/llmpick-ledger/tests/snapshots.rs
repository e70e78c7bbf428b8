//! Whatever happens to a snapshot, the answer is the one before it, then nothing.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{answered, place, with_parts};
use llmpick_core::{Mode, Snapshot};
use llmpick_ledger::{Cursor, Ledger, LoadedSnapshot, ShadowRecord, SnapshotStore};

struct World {
    _dir: tempfile::TempDir,
    ledger: Ledger,
    store: SnapshotStore,
    cursors: Vec<Cursor>,
}

/// Two snapshots of `r`, after the first and the second feedback.
fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_in_memory().unwrap();
    let store = SnapshotStore::new(dir.path().join("routers"));
    for n in 1..=2 {
        answered(&ledger, "a", 1.0, "");
        let cursor = ledger.feedback_after(n - 1, 1).unwrap()[0].cursor;
        store.save("r", &ledger, &state(n), cursor).unwrap();
    }
    let cursors = ledger
        .feedback_after(0, 9)
        .unwrap()
        .iter()
        .map(|r| r.cursor)
        .collect();
    World {
        _dir: dir,
        ledger,
        store,
        cursors,
    }
}

fn state(n: u64) -> Snapshot {
    Snapshot {
        version: 3,
        state: n.to_le_bytes().to_vec(),
    }
}

/// What is accepted, and how many files were passed over.
fn load(world: &World) -> (Option<u64>, LoadedSnapshot) {
    let mut taken = None;
    let loaded = world.store.load("r", &world.ledger, |snapshot| {
        assert_eq!(snapshot.version, 3);
        taken = Some(u64::from_le_bytes(
            snapshot.state.as_slice().try_into().unwrap(),
        ));
        Ok(())
    });
    (taken, loaded)
}

#[test]
fn the_newest_is_taken() {
    let world = world();
    let (taken, loaded) = load(&world);
    assert_eq!((taken, loaded.cursor), (Some(2), Some(world.cursors[1])));
    assert!(loaded.problems.is_empty());
}

#[test]
fn a_damaged_one_gives_way_to_the_one_before() {
    let whole = |world: &World| fs::read(world.store.path("r", &world.ledger)).unwrap();
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let damages: [Damage; 5] = [
        |_| Vec::new(),
        |bytes| bytes[..bytes.len() - 1].to_vec(),
        |mut bytes| {
            let last = bytes.len() - 40;
            bytes[last] ^= 1;
            bytes
        },
        |mut bytes| {
            bytes[9] ^= 1;
            bytes
        },
        |_| vec![b'x'; 4096],
    ];
    for damage in damages {
        let world = world();
        let path = world.store.path("r", &world.ledger);
        fs::write(&path, damage(whole(&world))).unwrap();
        let (taken, loaded) = load(&world);
        assert_eq!((taken, loaded.cursor), (Some(1), Some(world.cursors[0])));
        assert_eq!(loaded.problems.len(), 1, "{:?}", loaded.problems);
        assert!(!path.exists(), "the bad one is moved aside, and kept");
    }
}

#[test]
fn one_that_the_router_refuses_gives_way_too() {
    let world = world();
    let mut offered = 0;
    let loaded = world.store.load("r", &world.ledger, |_| {
        offered += 1;
        Err("no".into())
    });
    assert_eq!(
        (offered, loaded.cursor, loaded.problems.len()),
        (2, None, 2)
    );
}

#[test]
fn another_ledgers_or_anothers_history_is_refused() {
    let world = world();
    let other = Ledger::open_in_memory().unwrap();
    let foreign = world.store.path("r", &other);
    fs::copy(world.store.path("r", &world.ledger), &foreign).unwrap();
    let loaded = world.store.load("r", &other, |_| Ok(()));
    assert_eq!((loaded.cursor, loaded.problems.len()), (None, 1));

    // A snapshot that has seen more than the ledger holds: a power cut took the rest back.
    let ahead = Cursor { id: 3, nonce: 5 };
    world
        .store
        .save("r", &world.ledger, &state(3), ahead)
        .unwrap();
    let (taken, loaded) = load(&world);
    assert_eq!((taken, loaded.problems.len()), (Some(2), 1));
}

#[test]
fn nothing_there_is_no_problem() {
    let world = world();
    let loaded = world.store.load("someone else", &world.ledger, |_| Ok(()));
    assert_eq!((loaded.cursor, loaded.problems.len()), (None, 0));
}

#[test]
fn the_first_format_still_opens() {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let place = tempfile::tempdir().unwrap();
    let path = camino::Utf8PathBuf::from_path_buf(place.path().join("ledger.db")).unwrap();
    fs::copy(fixtures.join("ledger-v1.db"), &path).unwrap();
    let ledger = Ledger::open(&path).unwrap();
    let route = ledger.last_route().unwrap().unwrap();
    assert_eq!((route.id.0, route.context.0.as_str()), (2, "fixture"));
    assert_eq!(route.feedback[0].feedback.score.map(f64::from), Some(0.25));

    let store = SnapshotStore::new(place.path());
    fs::copy(
        fixtures.join("router-v1.snapshot"),
        store.path("r", &ledger),
    )
    .unwrap();
    let mut taken = Vec::new();
    let loaded = store.load("r", &ledger, |snapshot| {
        taken.clone_from(&snapshot.state);
        Ok(())
    });
    assert_eq!(taken, 1_u64.to_le_bytes(), "{:?}", loaded.problems);
    assert_eq!(loaded.cursor.map(|cursor| cursor.id), Some(1));
}

/// Written once, when a version was born: LLMPICK_WRITE_FIXTURES=ledger-vN.db with the program of
/// then.
fn copy_of(fixture: &str, path: &camino::Utf8Path) {
    let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    if std::env::var("LLMPICK_WRITE_FIXTURES").is_ok_and(|named| named == fixture) {
        let ledger = Ledger::open(path).unwrap();
        let route = with_parts(&ledger, "fixture");
        ledger.record_shadow(route, &shadow()).unwrap();
        drop(ledger);
        fs::copy(path, fixtures.join(fixture)).unwrap();
    }
    fs::copy(fixtures.join(fixture), path).unwrap();
}

fn shadow() -> ShadowRecord {
    ShadowRecord {
        router: "beside".into(),
        choices: vec![1],
        mode: Some(Mode::SumUp),
        propensity: 0.25,
        marginals: vec![0.5, 0.75],
        reason: "because".into(),
        error: None,
    }
}

#[test]
fn the_second_format_still_opens() {
    let (_dir, path) = place();
    copy_of("ledger-v2.db", &path);
    let ledger = Ledger::open(&path).unwrap();
    let route = ledger.last_route().unwrap().unwrap();
    let parts: Vec<_> = route.parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(parts, ["one", "two", "three"]);
    assert_eq!((route.feedback.len(), route.shadow), (2, None));
}

#[test]
fn the_third_format_still_opens() {
    let (_dir, path) = place();
    copy_of("ledger-v3.db", &path);
    let ledger = Ledger::open(&path).unwrap();
    let route = ledger.last_route().unwrap().unwrap();
    assert_eq!(route.shadow, Some(shadow()));
    assert_eq!(ledger.shadow_stats().unwrap()[0].asked, 1);
}

#[test]
fn the_fourth_format_still_opens() {
    let (_dir, path) = place();
    copy_of("ledger-v4.db", &path);
    let ledger = Ledger::open(&path).unwrap();
    let route = ledger.last_route().unwrap().unwrap();
    assert_eq!(route.limits.features, [0.1, -2.5e-8, f32::MAX]);
    let learnt = &route.feedback[1].feedback;
    assert_eq!(learnt.features, [0.1, -2.5e-8, f32::MAX]);
}
