//! What routers and scorers have in common: what they say of themselves, and their settings.

use llmpick_plugin_abi as abi;
use serde_json::{Value, json};

use super::Test;
use super::child::step;
use super::subject::{LookUps, Plugin, Subject, World, said};
use crate::PluginKind;
use crate::library::Table;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "what it says of itself is sound",
        run: metadata,
    },
    Test {
        name: "it starts and ends with its settings",
        run: starts,
    },
    Test {
        name: "settings that are garbage are refused with a sentence",
        run: garbage_settings,
    },
];

fn metadata(plugin: &Plugin) -> Result<String, String> {
    let info = &plugin.info;
    if !is_semver(&info.version) {
        let version = &info.version;
        return Err(format!("its version `{version}` is not like 1.2.3"));
    }
    if !info.config_schema.is_empty() {
        schema(plugin)?;
    }
    let (oldest, newest) = (info.state_version_min, info.state_version);
    if oldest > newest {
        return Err(format!(
            "it reads state from version {oldest} on, and writes version {newest}"
        ));
    }
    if let Table::Router(table) = plugin.table {
        if newest > 0 && (table.snapshot.is_none() || table.restore.is_none()) {
            return Err(format!(
                "it declares state of version {newest} and lacks `snapshot` or `restore`"
            ));
        }
        if newest == 0 && table.restore.is_some() && table.snapshot.is_none() {
            return Err("it has `restore` and no `snapshot`".to_owned());
        }
    } else if newest > 0 {
        return Err("it is a scorer, which keeps no state, and declares a state version".into());
    }
    let known = abi::CAP_NEEDS_PROMPT
        | abi::CAP_NEEDS_FEATURES
        | abi::CAP_THREAD_SAFE
        | abi::CAP_MULTI_SELECT;
    if info.kind == PluginKind::Scorer && info.has(abi::CAP_MULTI_SELECT) {
        return Err("it is a scorer and declares MULTI_SELECT, which is for routers".into());
    }
    // A newer header may have more bits (rule R5).
    let unknown = info.caps & !known;
    Ok(match unknown {
        0 => format!("{} {}", info.kind, info.version),
        bits => format!(
            "{} {}; capabilities {bits:#x} are unknown here",
            info.kind, info.version
        ),
    })
}

fn is_semver(version: &str) -> bool {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    core.split('.').count() == 3 && core.split('.').all(number)
}

/// The schema as JSON.
fn schema(plugin: &Plugin) -> Result<Value, String> {
    match serde_json::from_str(&plugin.info.config_schema) {
        Ok(schema @ Value::Object(_)) => Ok(schema),
        Ok(_) => Err("its config_schema is no JSON object".to_owned()),
        Err(error) => Err(format!("its config_schema is no JSON: {error}")),
    }
}

fn starts(plugin: &Plugin) -> Result<String, String> {
    step("it started with its settings");
    drop(Subject::new(plugin)?);
    drop(Subject::new(plugin)?);
    if plugin.settings == json!({}) {
        // An empty text means the same as an empty object.
        let empty = Subject::create(plugin, "", &json!({}), LookUps::Honest, World::Plain);
        empty.map_err(|error| format!("it did not start without settings: {}", said(&error)))?;
    }
    Ok(String::new())
}

/// What a plugin must refuse: no JSON; JSON that is no object; the wrong type for every key
/// of its schema; and, where the schema allows no others, a key that nobody knows. A plugin
/// in C that reads by look-ups sees E_CONFIG from each in the first two cases; one that has
/// no settings at all must refuse anything but `{}` and nothing.
fn garbage_settings(plugin: &Plugin) -> Result<String, String> {
    for text in ["{\"b", "[1, 2, 3]", "\"settings\"", "\u{1}\u{7f}{{"] {
        refused(plugin, text, &json!({}), LookUps::WrongType)?;
    }
    if plugin.info.config_schema.is_empty() {
        return Ok("it declares no settings".to_owned());
    }
    let schema = schema(plugin)?;
    let mut tried = 0;
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(wrong) = wrong_value(property) {
            let settings = json!({ key.as_str(): wrong });
            refused(plugin, &settings.to_string(), &settings, LookUps::Honest)?;
            tried += 1;
        }
    }
    if schema["additionalProperties"] == json!(false) {
        let settings = json!({"no_such_setting": 1});
        refused(plugin, &settings.to_string(), &settings, LookUps::Honest)?;
    }
    Ok(format!("{tried} settings of the schema with a wrong type"))
}

/// A value that the property cannot have, if one is certain.
fn wrong_value(property: &Value) -> Option<Value> {
    let odd = json!([["odd"]]);
    match property["type"].as_str() {
        Some("array" | "object") => Some(json!("odd")),
        Some(_) => Some(odd),
        None if property.get("enum").is_some() || property.get("oneOf").is_some() => Some(odd),
        None => None,
    }
}

fn refused(plugin: &Plugin, text: &str, settings: &Value, look_ups: LookUps) -> Result<(), String> {
    let shown: String = text.escape_debug().collect();
    step(format!("it started with the settings `{shown}`"));
    match Subject::create(plugin, text, settings, look_ups, World::Plain) {
        Ok(_) => Err(format!("it took the settings `{shown}`")),
        Err(error) if error.status != abi::E_CONFIG => Err(format!(
            "it answered the settings `{shown}` with status {} where LLMPICK_E_CONFIG (-3) \
             says that they are wrong: {}",
            error.status,
            said(&error)
        )),
        // What the host says where a plugin wrote nothing.
        Err(error) if error.message == "it refused its configuration" => Err(format!(
            "it refused the settings `{shown}` without a sentence in `err`"
        )),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_three_numbers_and_a_tail() {
        for good in ["1.2.3", "0.1.0-rc.1", "10.0.0+build"] {
            assert!(is_semver(good), "{good}");
        }
        for bad in ["", "1", "1.2", "1.2.x", "v1.2.3", "1..3"] {
            assert!(!is_semver(bad), "{bad}");
        }
    }

    #[test]
    fn a_wrong_value_is_wrong_for_its_type() {
        assert_eq!(
            wrong_value(&json!({"type": "number"})),
            Some(json!([["odd"]]))
        );
        assert_eq!(wrong_value(&json!({"type": "array"})), Some(json!("odd")));
        assert_eq!(wrong_value(&json!({"description": "anything"})), None);
    }
}
