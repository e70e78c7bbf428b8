//! The clients people use already: the openai package over TCP and over the socket.

use std::process::Command;

use llmpick_stories::{Daemon, Home, LARGE, SMALL, Said, fixture, has_pool, python};

fn client(script: &str, daemon: &Daemon, rest: &[&str]) -> Option<Said> {
    let mut command = Command::new(python()?);
    command
        .arg(fixture("../clients").join(script))
        .arg(daemon.base_url())
        .arg(&daemon.socket)
        .args(rest);
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
    ] {
        command.env_remove(name);
    }
    Some(command.output().unwrap().into())
}

#[test]
fn the_openai_client_chats() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let daemon = home.serve(&[]);
    let Some(said) = client("openai_chat.py", &daemon, &[SMALL, LARGE]) else {
        return;
    };
    let said = said.ok();
    assert!(said.out.contains("all good"), "{said:?}");
}

#[test]
fn two_local_arms_and_a_remote_one_share_the_work() {
    if !has_pool() {
        return;
    }
    let upstream_home = Home::new();
    let upstream = upstream_home.serve(&[]);
    let home = Home::new();
    home.settings(&format!(
        "[router]\nplugin = \"baselines:round-robin\"\n\
         [[remote]]\nname = \"elsewhere\"\nbase_url = \"{}\"\nmodel = \"{SMALL}\"\n\
         context_tokens = 8192\ninput_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0\n",
        upstream.base_url()
    ));
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..6 {
        let answer = home
            .run(&["chat", "Say hi.", "--max-tokens", "6", "--json"])
            .ok()
            .json();
        seen.insert(answer["model"].as_str().unwrap().to_owned(), answer);
    }
    assert_eq!(seen.len(), 3, "{seen:#?}");
    let remote = &seen["elsewhere"];
    let usage = &remote["usage"];
    let tokens = |key: &str| usage[key].as_f64().unwrap();
    let price = (tokens("prompt_tokens") + 2.0 * tokens("completion_tokens")) / 1e6;
    assert!(
        (remote["cost_usd"].as_f64().unwrap() - price).abs() < 1e-9,
        "{remote}"
    );
    let route = remote["route_id"].as_str().unwrap();
    let shown = home.run(&["route", "show", route, "--json"]).ok().json();
    assert!(shown.to_string().contains("elsewhere"), "{shown}");
}

#[test]
fn the_command_uses_a_running_daemon() {
    if !has_pool() {
        return;
    }
    let home = Home::new();
    let _daemon = home.serve(&[]);
    let answer = home
        .run(&["chat", "Hello", "--max-tokens", "8", "--json"])
        .ok()
        .json();
    assert_eq!(answer["via"], "daemon", "{answer}");
    let route = answer["route_id"].as_str().unwrap();
    home.run(&["feedback", route, "1"]).ok();
    let second = home.command(&["serve", "--tcp", ""]).output().unwrap();
    let second: Said = second.into();
    second.fails(1, &["llmpick.sock"]);
}
