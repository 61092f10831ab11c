//! The reference page of the configuration file, made from the types that read it, so that it cannot lie.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::{
    file::File,
    health::{CheckKind, CheckSettings},
};
use crate::{cli::args, control::model::ServiceSpec, datapath};

const INTRODUCTION: &str = "# The configuration file\n\n\
    What `ebb run -c FILE`, `ebb check FILE` and `ebb apply FILE` read. It is TOML; a key that is not listed here is an error,\n\
    told with its line, its column and the nearest key there is. Durations are written `\"90s\"`, `\"5m\"`, `\"1h30m\"` or as a\n\
    number of seconds. With a file, the services are exactly those in it: what it lacks is drained, and then removed.\n\n\
    This page is generated from the program's own types (`EBB_WRITE_DOCS=1 cargo test -p lb-userspace reference`).\n";

const FLOW_LOG_TEXT: &str = "A line of JSON for each TCP connection or datagram flow that is over. Nothing is logged without this block; a \
    change takes a restart. The file is begun anew when it was moved away, and on SIGHUP.";
const REMOTE_TEXT: &str = "Remote control: the operations of the socket over TCP with mutual TLS (1.3). Without this block \
    nothing listens. The certificates and the list of clients are read again on SIGHUP; another `listen` takes a restart.";
const CLIENT_TEXT: &str = "One block for each certificate that may do something; the first whose name fits counts.";

/// Keys that are blocks.
const BLOCKS: [&str; 6] = ["backend", "client", "flow_log", "health_check", "hook", "remote"];

/// The whole page, in Markdown.
pub fn page() -> String {
    let settings = SchemaSettings::draft2020_12().for_deserialize();
    let schema = settings.into_generator().into_root_schema_for::<File>().to_value();
    let mut page = INTRODUCTION.to_owned();
    let sections = [
        ("Daemon", "[daemon]", "How the daemon runs. A flag of `ebb run` wins over its key.", daemon_defaults()),
        ("FlowLogSpec", "[daemon.flow_log]", FLOW_LOG_TEXT, json!({ "sample": 1, "services": [] })),
        ("Remote", "[daemon.remote]", REMOTE_TEXT, json!({})),
        ("RemoteClient", "[[daemon.remote.client]]", CLIENT_TEXT, json!({ "addresses": "the caller's" })),
        ("HookSpec", "[[daemon.hook]]", "One block for each hook; a change takes a restart.", hook_defaults()),
        ("Service", "[[service]]", "One block for each service.", service_defaults()),
        ("CheckSettings", "[service.health_check]", "How a service's backends are checked.", check_defaults()),
        ("Backend", "[[service.backend]]", "One block for each backend, below its service.", json!({ "weight": 1 })),
    ];
    for (kind, heading, text, defaults) in sections {
        page.push_str(&format_section(&schema["$defs"][kind], &schema["$defs"], heading, text, &defaults));
    }
    page
}

fn format_section(schema: &Value, kinds: &Value, heading: &str, text: &str, defaults: &Value) -> String {
    let mut section = format!("\n## `{heading}`\n\n{text}\n\n| key | value | default | |\n|---|---|---|---|\n");
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    // Blocks have sections of their own.
    let keys =
        schema["properties"].as_object().into_iter().flatten().filter(|(key, _)| !BLOCKS.contains(&key.as_str()));
    let (needed, other): (Vec<_>, Vec<_>) = keys.partition(|(key, _)| required.contains(&key.as_str()));
    for (key, property) in needed.into_iter().chain(other) {
        let default = match defaults.get(key) {
            _ if required.contains(&key.as_str()) => "needed".to_owned(),
            // TCP's and UDP's differ.
            None if key == "idle_timeout" => "350 for TCP, 120 for UDP".to_owned(),
            Some(Value::String(text)) => format!("`\"{text}\"`"),
            Some(value) => format!("`{value}`"),
            None => "none".to_owned(),
        };
        let meaning = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        section.extend(["| `", key, "` | ", &value_words(property, kinds), " | ", &default, " | ", &meaning, " |\n"]);
    }
    section
}

/// What to write, in words: the names of this program's types, or JSON's own.
fn value_words(schema: &Value, kinds: &Value) -> String {
    if let Some(forms) = schema["anyOf"].as_array() {
        let form = forms.iter().find(|form| form["type"] != "null");
        return form.map(|form| value_words(form, kinds)).unwrap_or_default();
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
        return match name {
            "Seconds" => "duration".to_owned(),
            "Limit" => "duration, or `\"none\"`".to_owned(),
            "Vip" => "`\"ADDR:PORT/tcp\"` or `\"…/udp\"`".to_owned(),
            "BackendAddress" => "`\"ADDR\"`, under nat also `\"ADDR:PORT\"`".to_owned(),
            "MaxOut" => "number, or `\"25%\"`".to_owned(),
            _ => choice_words(&kinds[name]),
        };
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().find(|kind| **kind != "null").cloned().unwrap_or_default(),
        kind => kind.clone(),
    };
    match kind.as_str() {
        Some("integer" | "number") => "number".to_owned(),
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("array") if schema["items"]["type"] == "integer" => "list of numbers".to_owned(),
        Some("array") => "list of text".to_owned(),
        _ => "text".to_owned(),
    }
}

fn choice_words(kind: &Value) -> String {
    let listed = kind["enum"].as_array().into_iter().flatten();
    let described = kind["oneOf"].as_array().into_iter().flatten().map(|form| &form["const"]);
    let words: Vec<String> = listed.chain(described).map(|word| format!("`{word}`")).collect();
    words.join(", ")
}

/// From where the wire's shape says them, under the file's names.
fn service_defaults() -> Value {
    let spec = json!({ "name": "web", "vip": "192.0.2.1:80/tcp" });
    let spec: Option<ServiceSpec> = serde_json::from_value(spec).ok();
    let mut defaults = json!({});
    let filled_in = serde_json::to_value(spec).unwrap_or_default();
    for (key, value) in filled_in.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        defaults[key.strip_suffix("_s").unwrap_or(key)] = value.clone();
    }
    defaults
}

fn check_defaults() -> Value {
    let settings = CheckSettings { check: Some(CheckKind::Tcp), ..CheckSettings::default() };
    let mut filled_in = serde_json::to_value(settings.over(None).ok()).unwrap_or_default();
    let mut defaults = json!({});
    for (key, value) in filled_in.as_object_mut().into_iter().flatten() {
        if value.is_number() || value.is_boolean() {
            defaults[key.strip_suffix("_s").unwrap_or(key)] = value.take();
        }
    }
    defaults
}

fn hook_defaults() -> Value {
    json!({ "timeout": 10, "retries": 5 })
}

fn daemon_defaults() -> Value {
    let options = datapath::Options::default();
    json!({
        "mode": "auto",
        "max_flows": options.max_flows,
        "pin_path": options.pin_path,
        "state_dir": args::DEFAULT_STATE_DIR,
        "socket_mode": "0660",
        "socket_group": "the daemon's",
    })
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;

    #[test]
    fn the_page_in_the_documentation_is_this_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        if env::var_os("EBB_WRITE_DOCS").is_some() {
            fs::write(&path, page()).expect("writes");
        }
        let written = fs::read_to_string(&path).unwrap_or_default();
        assert!(written == page(), "{} is out of date: EBB_WRITE_DOCS=1 writes it anew", path.display());
    }
}
