//! The names and kinds of all settings: what a layer may say, before anybody believes it.

/// What kind of value a setting takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Switch,
    /// A whole number from 0 to 2³²−1.
    Count,
    /// A whole number from 0 to 2⁶³−1.
    Seed,
    Number,
    Texts,
}

impl Kind {
    /// Completes "takes …".
    pub(super) fn describe(self) -> &'static str {
        match self {
            Kind::Text => "a text",
            Kind::Switch => "true or false",
            Kind::Count => "a whole number from 0 to 4294967295",
            Kind::Seed => "a whole number from 0 to 9223372036854775807",
            Kind::Number => "a number",
            Kind::Texts => "a list of texts",
        }
    }

    /// The value as this kind, integers made numbers where a number is due.
    pub(super) fn admit(self, value: toml::Value) -> Option<toml::Value> {
        use toml::Value;
        match (self, value) {
            (Kind::Text, value @ Value::String(_)) => Some(value),
            (Kind::Switch, value @ Value::Boolean(_)) => Some(value),
            (Kind::Count, Value::Integer(n)) => {
                u32::try_from(n).is_ok().then_some(Value::Integer(n))
            }
            (Kind::Seed, Value::Integer(n)) => (n >= 0).then_some(Value::Integer(n)),
            (Kind::Number, Value::Integer(n)) => Some(Value::Float(n as f64)),
            (Kind::Number, Value::Float(x)) => x.is_finite().then_some(Value::Float(x)),
            (Kind::Texts, Value::Array(items)) => items
                .iter()
                .all(toml::Value::is_str)
                .then_some(Value::Array(items)),
            _ => None,
        }
    }

    /// Reads what a flag or a variable says. A list is TOML, or texts with commas between.
    pub(super) fn parse(self, text: &str) -> Option<toml::Value> {
        use toml::Value;
        let value = match self {
            // A text may stand in TOML's quotes or without them.
            Kind::Text if text.len() > 1 && text.starts_with('"') && text.ends_with('"') => {
                parse_value(text)?
            }
            Kind::Text => Value::String(text.to_owned()),
            Kind::Switch => Value::Boolean(match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => true,
                "false" | "0" | "no" | "off" => false,
                _ => return None,
            }),
            Kind::Count | Kind::Seed => Value::Integer(text.trim().parse().ok()?),
            Kind::Number => Value::Float(text.trim().parse().ok()?),
            Kind::Texts if text.trim_start().starts_with('[') => parse_value(text)?,
            Kind::Texts => Value::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| Value::String(item.to_owned()))
                    .collect(),
            ),
        };
        self.admit(value)
    }
}

/// Reads one TOML value, for the free tables that go to plugins; `None` if it is none.
pub(super) fn parse_value(text: &str) -> Option<toml::Value> {
    let table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    table.get("value").cloned()
}

/// Every setting outside `[[remote]]` and `[router.config]`.
pub(super) const KEYS: &[(&str, Kind)] = &[
    ("pool.arms", Kind::Texts),
    ("router.plugin", Kind::Text),
    ("router.paths", Kind::Texts),
    ("router.mode", Kind::Text),
    ("router.max_arms", Kind::Count),
    ("router.accept_threshold", Kind::Number),
    ("router.deadline_ms", Kind::Count),
    ("router.seed", Kind::Seed),
    ("router.frozen", Kind::Switch),
    ("router.shadow", Kind::Text),
    ("plugins.isolation", Kind::Text),
    ("plugins.pin", Kind::Switch),
    ("plugins.watch", Kind::Switch),
    ("router.context", Kind::Text),
    ("router.scheduler", Kind::Text),
    ("router.scheduler_key_file", Kind::Text),
    ("router.resend_after", Kind::Count),
    ("router.resend_tolerance", Kind::Number),
    ("scheduler.enabled", Kind::Switch),
    ("scheduler.queue", Kind::Count),
    ("scheduler.down_after", Kind::Count),
    ("scheduler.cool_down", Kind::Text),
    ("scheduler.sessions", Kind::Count),
    ("plugins.scorers", Kind::Texts),
    ("budget.per_request_usd", Kind::Number),
    ("budget.limit_usd", Kind::Number),
    ("budget.window", Kind::Text),
    ("compute.usd_per_hour", Kind::Number),
    ("compute.threads", Kind::Count),
    ("compute.max_context", Kind::Count),
    ("compute.memory_limit", Kind::Text),
    ("compute.kv_cache", Kind::Text),
    ("compute.activations", Kind::Text),
    ("compute.device", Kind::Text),
    ("store.models_dir", Kind::Text),
    ("store.offline", Kind::Switch),
    ("store.python", Kind::Text),
    ("store.hub_endpoint", Kind::Text),
    ("ledger.path", Kind::Text),
    ("ledger.keep_prompts", Kind::Switch),
    ("server.socket", Kind::Text),
    ("server.tcp", Kind::Text),
    ("server.api_key_file", Kind::Text),
    ("server.body_limit", Kind::Text),
    ("server.max_requests", Kind::Count),
    ("chat.system", Kind::Text),
    ("chat.max_tokens", Kind::Count),
    ("chat.temperature", Kind::Number),
    ("chat.top_k", Kind::Count),
    ("chat.top_p", Kind::Number),
    ("chat.min_p", Kind::Number),
    ("chat.repetition_penalty", Kind::Number),
];

/// Every setting of one `[[remote]]`.
pub(super) const REMOTE_KEYS: &[(&str, Kind)] = &[
    ("name", Kind::Text),
    ("base_url", Kind::Text),
    ("model", Kind::Text),
    ("api_key_env", Kind::Text),
    ("api_key_file", Kind::Text),
    ("context_tokens", Kind::Count),
    ("input_usd_per_mtok", Kind::Number),
    ("output_usd_per_mtok", Kind::Number),
    ("timeout_s", Kind::Count),
    ("extended_sampling", Kind::Switch),
];

/// The prefix of the free table that goes to the router plugin.
pub(super) const ROUTER_CONFIG: &str = "router.config.";

/// The kind of a setting, if there is one of that name.
pub(super) fn kind_of(keys: &[(&str, Kind)], name: &str) -> Option<Kind> {
    keys.iter()
        .find(|(known, _)| *known == name)
        .map(|(_, kind)| *kind)
}

/// The known name that is most like a mistyped one, if any is near.
pub(super) fn suggestion(keys: &[(&str, Kind)], name: &str) -> Option<String> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    keys.iter()
        .map(|(known, _)| {
            // A right word in the wrong section counts as near.
            let whole = strsim::jaro_winkler(known, name);
            let ending = strsim::jaro_winkler(&last(known), &last(name)) * 0.95;
            (whole.max(ending), *known)
        })
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known.to_owned())
}

/// Why the file of a project may not set `name`, if so: a folder that somebody cloned
/// must not run programs, read keys, or send prompts elsewhere.
pub(super) fn refused_in_project(name: &str, value: &toml::Value) -> bool {
    let names_a_file = || value.as_str().is_some_and(|text| text.contains('/'));
    match name {
        "router.paths" | "router.scheduler" | "router.scheduler_key_file" | "ledger.path" => true,
        "router.plugin" | "router.shadow" => names_a_file(),
        "pool.arms" => false,
        _ => ["plugins.", "store.", "server.", "scheduler.", "remote."]
            .iter()
            .any(|prefix| name.starts_with(prefix)),
    }
}
