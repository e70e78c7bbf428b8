//! Layers, origins, and every way in which settings can be wrong.

#![allow(clippy::unwrap_used, reason = "a test says where it failed")]

use camino::Utf8PathBuf;
use llmpick_core::Mode;
use llmpick_daemon::settings::Origin;
use llmpick_daemon::{DEFAULT_CONFIG, Paths, Settings, SettingsError, SettingsSources};
use tempfile::TempDir;

/// A machine of its own: a home, a project, a system file.
struct Machine {
    home: TempDir,
    sources: SettingsSources,
    paths: Paths,
}

impl Machine {
    fn new() -> Self {
        let home = TempDir::new().unwrap();
        let root = Utf8PathBuf::from_path_buf(home.path().to_path_buf()).unwrap();
        let paths = Paths::below(root.join("home"));
        let sources = SettingsSources {
            directory: root.join("project"),
            system_file: root.join("etc/llmpick.toml"),
            ..SettingsSources::default()
        };
        Self {
            home,
            sources,
            paths,
        }
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.home.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn system(self, text: &str) -> Self {
        self.file("etc/llmpick.toml", text)
    }

    fn user(self, text: &str) -> Self {
        self.file("home/config/llmpick.toml", text)
    }

    fn project(self, text: &str) -> Self {
        self.file("project/llmpick.toml", text)
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources
            .environment
            .push((name.to_owned(), value.to_owned()));
        self
    }

    fn flag(mut self, key: &str, value: &str) -> Self {
        self.sources
            .overrides
            .push((key.to_owned(), value.to_owned()));
        self
    }

    fn load(&self) -> Result<Settings, SettingsError> {
        Settings::load_with(self.sources.clone(), self.paths.clone())
    }

    /// The error with the machine's own folder taken out.
    fn error(&self) -> String {
        let root = format!("{}/", self.home.path().display());
        self.load().unwrap_err().to_string().replace(&root, "")
    }
}

#[test]
fn the_reference_is_what_an_empty_machine_gets() {
    let settings = Machine::new().load().unwrap();
    assert_eq!(
        settings.pool,
        ["smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct"]
    );
    assert_eq!(settings.router.plugin, "c2mabv");
    assert_eq!(settings.router.mode, Mode::Single);
    assert_eq!(settings.router.config_json, "{}");
    assert_eq!(
        settings.server.tcp,
        Some("127.0.0.1:11435".parse().unwrap())
    );
    assert_eq!(settings.ledger.path, settings.paths.data.join("ledger.db"));
    assert!(!settings.ledger.keep_prompts);
    assert!(settings.remotes.is_empty());
}

#[test]
fn the_reference_names_every_setting() {
    let settings = Machine::new().load().unwrap();
    for one in settings.explain_all() {
        let key = one.key.rsplit('.').next().unwrap();
        let line = |line: &str| {
            let line = line.trim_start_matches('#');
            line.strip_prefix(key)
                .is_some_and(|rest| rest.starts_with(" ="))
        };
        assert!(
            DEFAULT_CONFIG.lines().any(line),
            "{} is not in the reference",
            one.key
        );
    }
}

#[test]
fn what_the_reference_comments_out_is_accepted_too() {
    let start = DEFAULT_CONFIG.find("\n[pool]").unwrap();
    let body: String = DEFAULT_CONFIG[start..]
        .lines()
        .map(|line| {
            let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
            setting.unwrap_or(line).to_owned() + "\n"
        })
        .filter(|line| !line.starts_with("api_key_env"))
        .collect();
    let settings = Machine::new().user(&body).load().unwrap();
    assert_eq!(settings.remotes[0].name.as_str(), "groq/llama-3.1-8b");
    assert_eq!(settings.compute.memory_limit, Some(8 << 30));
}

#[test]
fn each_layer_stands_above_the_one_before() {
    let origin = |machine: &Machine| machine.load().unwrap().explain("router.max_arms").unwrap();
    let machine = Machine::new();
    assert_eq!(origin(&machine).origin, Origin::Default);
    let machine = machine.system("[router]\nmax_arms = 3\n");
    assert_eq!(origin(&machine).value.as_deref(), Some("3"));
    let machine = machine.user("\n[router]\n# mine\nmax_arms = 4\n");
    let explained = origin(&machine);
    assert_eq!(explained.value.as_deref(), Some("4"));
    assert!(
        matches!(explained.origin, Origin::File { line: 4, .. }),
        "{}",
        explained.origin
    );
    let machine = machine.project("router.max_arms = 5\n");
    assert_eq!(origin(&machine).value.as_deref(), Some("5"));
    let mut machine = machine.file("given.toml", "router.max_arms = 6\n");
    let given = Utf8PathBuf::from_path_buf(machine.home.path().join("given.toml")).unwrap();
    machine.sources.file = Some(given);
    assert_eq!(origin(&machine).value.as_deref(), Some("6"));
    let machine = machine.env("LLMPICK_ROUTER__MAX_ARMS", "7");
    let explained = origin(&machine);
    assert_eq!(
        explained.origin,
        Origin::Env("LLMPICK_ROUTER__MAX_ARMS".into())
    );
    let machine = machine.flag("router.max_arms", "8");
    assert_eq!(origin(&machine).origin, Origin::Flag);
    assert_eq!(machine.load().unwrap().router.max_arms, 8);
}

#[test]
fn mistakes_are_told_with_their_place_and_a_guess() {
    let user = |text: &str| Machine::new().user(text).error();
    let env = |name: &str, value: &str| Machine::new().env(name, value).error();
    let cases = [
        (
            user("[router]\nplugn = \"x\"\n"),
            "home/config/llmpick.toml, line 2: there is no setting `router.plugn`; did you mean `router.plugin`?",
        ),
        (
            user("[rooter]\nplugin = \"x\"\n"),
            "home/config/llmpick.toml, line 1: there is no setting `rooter`; did you mean `router`?",
        ),
        (
            user("threads = 2\n"),
            "home/config/llmpick.toml, line 1: there is no setting `threads`; did you mean `compute.threads`?",
        ),
        (
            user("[router]\nmax_arms = \"two\"\n"),
            "home/config/llmpick.toml, line 2: `router.max_arms` takes a whole number from 0 to 4294967295",
        ),
        (
            user("[router]\nmax_arms = -1\n"),
            "home/config/llmpick.toml, line 2: `router.max_arms` takes a whole number from 0 to 4294967295",
        ),
        (
            user("[router]\nmax_arms = 0\n"),
            "home/config/llmpick.toml, line 2: `router.max_arms` has to be at least 1",
        ),
        (
            user("[compute]\nactivations = \"f64\"\n"),
            "home/config/llmpick.toml, line 2: `compute.activations` is `f64`, and has to be int8 or int16",
        ),
        (
            user("[compute]\nkv_cache = \"q4\"\n"),
            "home/config/llmpick.toml, line 2: `compute.kv_cache` is `q4`, and has to be f32, f16 or int8",
        ),
        (
            user("[compute]\ndevice = \"gpu\"\n"),
            "home/config/llmpick.toml, line 2: `compute.device` is `gpu`, and has to be auto, cpu or cuda:N",
        ),
        (
            user("[router]\naccept_threshold = 1.5\n"),
            "home/config/llmpick.toml, line 2: `router.accept_threshold` is 1.5, and has to be from 0 to 1",
        ),
        (
            user("[router]\nmode = \"all_in\"\n"),
            "home/config/llmpick.toml, line 2: `router.mode` is `all_in`, and has to be single or any_win",
        ),
        (
            user("[budget]\nwindow = \"1h\"\n"),
            "home/config/llmpick.toml, line 2: `budget.window` says nothing without budget.limit_usd",
        ),
        (
            user("[[remote]]\nmodel = \"x\"\n"),
            "home/config/llmpick.toml, line 1: `remote.name` is missing: every [[remote]] needs a name",
        ),
        (
            user("[[remote]]\nname = \"a\"\nbase_url = \"ftp://x\"\nmodel = \"m\"\n"),
            "home/config/llmpick.toml, line 3: `remote.a.base_url` has to begin with http://, https:// or unix:/",
        ),
        (
            user("[[remote]]\nname = \"a\"\nmodell = \"m\"\n"),
            "home/config/llmpick.toml, line 3: there is no setting `remote.modell`; did you mean `model`?",
        ),
        (
            env("LLMPICK_ROUTER__PLUGN", "x"),
            "environment variable LLMPICK_ROUTER__PLUGN: there is no setting `router.plugn`; did you mean `router.plugin`?",
        ),
        (
            env("LLMPICK_ROUTER_PLUGIN", "x"),
            "environment variable LLMPICK_ROUTER_PLUGIN: there is no setting `LLMPICK_ROUTER_PLUGIN`; did you mean `LLMPICK_ROUTER__PLUGIN`?",
        ),
        (
            env("LLMPICK_SERVER__TCP", "everywhere"),
            "environment variable LLMPICK_SERVER__TCP: `server.tcp` takes an address and a port such as \"127.0.0.1:11435\"",
        ),
        (
            Machine::new().flag("pool.arms", "two words").error(),
            "flag: `pool.arms` is wrong: `two words` is not a model name (1 to 200 printable characters without spaces)",
        ),
    ];
    for (error, want) in cases {
        assert_eq!(error, want);
    }
    let syntax = user("[router\n");
    assert!(
        syntax.starts_with("read home/config/llmpick.toml, line 1: "),
        "{syntax}"
    );
}

#[test]
fn a_key_is_never_a_setting_and_never_printed() {
    let inline =
        "[[remote]]\nname = \"a\"\nbase_url = \"http://x\"\nmodel = \"m\"\napi_key = \"sk-1\"\n";
    let error = Machine::new().user(inline).error();
    assert!(
        error.contains("api_key_env or api_key_file") && !error.contains("sk-1"),
        "{error}"
    );

    let by_env = "[[remote]]\nname = \"a\"\nbase_url = \"http://x\"\nmodel = \"m\"\napi_key_env = \"THE_KEY\"\n";
    let without = Machine::new().user(by_env).load().unwrap();
    assert!(
        without.remotes[0]
            .key_missing
            .as_ref()
            .unwrap()
            .contains("THE_KEY")
    );
    let with = Machine::new()
        .user(by_env)
        .env("THE_KEY", "sk-1")
        .load()
        .unwrap();
    assert_eq!(with.remotes[0].api_key.as_ref().unwrap().expose(), "sk-1");
    assert!(!format!("{with:?}").contains("sk-1"));

    let by_file = "[[remote]]\nname = \"a\"\nbase_url = \"http://x\"\nmodel = \"m\"\napi_key_file = \"key\"\n";
    let machine = Machine::new()
        .user(by_file)
        .file("home/config/key", "sk-2\n");
    assert_eq!(
        machine.load().unwrap().remotes[0]
            .api_key
            .as_ref()
            .unwrap()
            .expose(),
        "sk-2"
    );
}

#[test]
fn a_projects_file_may_not_run_programs_or_send_prompts_away() {
    for text in [
        "[store]\npython = \"./evil\"\n",
        "[router]\npaths = [\"./plugins\"]\n",
        "[router]\nplugin = \"./evil.so\"\n",
        "[server]\ntcp = \"0.0.0.0:80\"\n",
        "[ledger]\npath = \"x\"\n",
        "[[remote]]\nname = \"a\"\nbase_url = \"http://evil\"\nmodel = \"m\"\napi_key_env = \"OPENAI_API_KEY\"\n",
    ] {
        let error = Machine::new().project(text).error();
        assert!(
            error.contains("cannot be set by the file of a project"),
            "{text}: {error}"
        );
    }
    let settings = Machine::new()
        .project("[router]\nplugin = \"pickllm\"\nmax_arms = 1\n")
        .load();
    assert_eq!(settings.unwrap().router.plugin, "pickllm");
}

#[test]
fn the_plugins_own_table_goes_through_as_json() {
    let machine =
        Machine::new().user("[router.config]\nalpha = 0.3\nnames = [\"a\"]\ndeep = { x = 1 }\n");
    let json = machine.load().unwrap().router.config_json;
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        value,
        serde_json::json!({"alpha": 0.3, "names": ["a"], "deep": {"x": 1}})
    );
    // One key more from the environment, and a number stays a number.
    let machine = machine.env("LLMPICK_ROUTER__CONFIG__BETA", "2");
    assert!(
        machine
            .load()
            .unwrap()
            .router
            .config_json
            .contains("\"beta\":2")
    );
    // Another plugin is not handed the table of this one.
    let machine = machine.project("[router]\nplugin = \"pickllm\"\n[router.config]\neta = 1\n");
    let json = machine.load().unwrap().router.config_json;
    assert!(json.contains("eta") && !json.contains("alpha"), "{json}");
}

#[test]
fn a_remote_of_a_higher_layer_changes_the_one_below() {
    let machine = Machine::new()
        .system("[[remote]]\nname = \"a\"\nbase_url = \"http://x\"\nmodel = \"m\"\ninput_usd_per_mtok = 1\n")
        .user("[[remote]]\nname = \"a\"\nmodel = \"n\"\n[[remote]]\nname = \"b\"\nbase_url = \"unix:/s\"\nmodel = \"m\"\n")
        .flag("remote.b.timeout_s", "5");
    let remotes = machine.load().unwrap().remotes;
    assert_eq!(remotes.len(), 2);
    assert_eq!(
        (remotes[0].model.as_str(), remotes[0].input_usd_per_mtok),
        ("n", 1.0)
    );
    assert_eq!(remotes[1].timeout.as_secs(), 5);
}

#[test]
fn switches_of_tests_and_other_programs_are_left_alone() {
    let machine = Machine::new()
        .env("LLMPICK_TEST_DATA", "x")
        .env("LLMPICK_REQUIRE_MODELS", "1")
        .env("LLMPICK_ALL_MODELS", "1")
        .env("LLMPICK_CONFIG", "x")
        .env("LLMPICK_LOG", "debug")
        .env("PATH", "x");
    assert!(machine.load().is_ok());
}

#[test]
fn paths_are_relative_to_the_file_that_says_them() {
    let machine =
        Machine::new().user("[store]\nmodels_dir = \"weights\"\n[ledger]\npath = \"~/l.db\"\n");
    let settings = machine.load().unwrap();
    assert_eq!(
        settings.store.models_dir,
        settings.paths.config.join("weights")
    );
    assert_eq!(settings.ledger.path, settings.paths.home.join("l.db"));
    let list = Machine::new()
        .flag("pool.arms", "[\"a\", \"b\"]")
        .load()
        .unwrap();
    assert_eq!(list.pool, ["a", "b"]);
    let quoted = Machine::new()
        .flag("server.tcp", "\"127.0.0.1:0\"")
        .load()
        .unwrap();
    assert_eq!(quoted.server.tcp.unwrap().port(), 0);
    let closed = Machine::new().flag("server.tcp", "\"\"").load().unwrap();
    assert_eq!(closed.server.tcp, None);
}
