//! Requests made up from the OpenAPI document, many of them wrong: the server's answers are what the document says.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{
    router,
    tests::{ask, ask_if, web},
};
use crate::daemon::fake::Rig;

/// A small generator of requests that are nearly right: what a schema allows, with something wrong in every other one.
struct Fuzz(u64);

impl Fuzz {
    fn below(&mut self, limit: u64) -> u64 {
        // xorshift64*: the same requests on every run.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn word(&mut self) -> String {
        const WORDS: [&str; 20] = [
            "web",
            "b1",
            "b2",
            "10.0.0.11",
            "10.0.0.100:80/tcp",
            "[fd00::1]:53/udp",
            "fd00::b",
            "none",
            "5m",
            "25%",
            "dsr",
            "nat",
            "reset",
            "active",
            "",
            "\u{0}",
            "é",
            "../..",
            "%2e%2e",
            "-1",
        ];
        WORDS[self.below(WORDS.len() as u64) as usize].to_owned()
    }

    fn junk(&mut self) -> Value {
        match self.below(8) {
            0 => Value::Null,
            1 => json!(u64::MAX),
            2 => json!(-1),
            3 => json!(1e308),
            4 => json!([]),
            5 => json!({ "unknown": [null] }),
            6 => json!("x".repeat(5_000)),
            _ => json!(self.word()),
        }
    }

    /// A value that the schema allows, most of the time.
    fn value(&mut self, schema: &Value, depth: u32) -> Value {
        if depth == 0 || self.below(8) == 0 {
            return self.junk();
        }
        for one_of in ["anyOf", "oneOf"] {
            if let Some(forms) = schema[one_of].as_array().filter(|forms| !forms.is_empty()) {
                let at = self.below(forms.len() as u64) as usize;
                return self.value(&forms[at], depth - 1);
            }
        }
        if let Some(word) = schema.get("const") {
            return word.clone();
        }
        if let Some(words) = schema["enum"].as_array() {
            return words[self.below(words.len() as u64) as usize].clone();
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds[self.below(kinds.len() as u64) as usize].clone(),
            kind => kind.clone(),
        };
        match kind.as_str() {
            Some("object") => {
                let properties = schema["properties"].as_object().cloned().unwrap_or_default();
                let mut object = serde_json::Map::new();
                for (name, schema) in properties {
                    // Left out now and then, needed or not.
                    if self.below(5) != 0 {
                        let value = self.value(&schema, depth - 1);
                        object.insert(name, value);
                    }
                }
                Value::Object(object)
            }
            Some("array") => (0..self.below(3)).map(|_| self.value(&schema["items"], depth - 1)).collect(),
            Some("integer" | "number") => json!(self.below(100)),
            Some("boolean") => json!(self.below(2) == 0),
            Some("null") => Value::Null,
            _ => json!(self.word()),
        }
    }
}

/// Whatever is sent to whatever the document describes, the answer is one the document describes, and the engine lives.
#[tokio::test]
async fn no_request_is_too_strange() {
    let rig = Rig::new();
    let router = router(rig.handle.clone());
    web(&router).await;
    let (_, document) = ask(&router, "GET", "/v1/openapi.json", "").await;
    let paths = document["paths"].as_object().expect("paths").clone();
    let operations: Vec<(&String, &String, &Value)> = paths
        .iter()
        .flat_map(|(path, operations)| {
            operations.as_object().expect("operations").iter().map(move |(m, o)| (path, m, o))
        })
        .collect();
    let mut fuzz = Fuzz(0x9E37_79B9_7F4A_7C15);
    let mut done = 0;
    for _ in 0..1_500 {
        let (path, method, operation) = operations[fuzz.below(operations.len() as u64) as usize];
        let mut path = path.clone();
        for name in ["{service}", "{backend}", "{address}"] {
            let word = match fuzz.below(4) {
                0 => percent(&fuzz.word()),
                _ if name == "{service}" => "web".to_owned(),
                _ if name == "{backend}" => "b1".to_owned(),
                _ => "10.0.0.11".to_owned(),
            };
            path = path.replace(name, &word);
        }
        let mut query = String::new();
        for parameter in operation["parameters"].as_array().expect("parameters") {
            // Following would never end, and neither would a wait without a limit.
            if parameter["in"] == "query" && parameter["name"] != "follow" && fuzz.below(2) == 0 {
                let name = parameter["name"].as_str().expect("a name");
                query.extend(["&", name, "=", &percent(&fuzz.word())]);
            }
        }
        if path.ends_with("/wait") {
            query = "&timeout_s=0.001".to_owned();
        }
        let body = match &operation["requestBody"]["content"]["application/json"]["schema"] {
            Value::Null => String::new(),
            schema => fuzz.value(schema, 6).to_string(),
        };
        let target = format!("{path}?{}", query.trim_start_matches('&'));
        let guarded = operation["parameters"].as_array().expect("parameters").iter().any(|p| p["name"] == "If-Match");
        let (status, answer) = if guarded && fuzz.below(3) == 0 {
            let tags = ["*", "\"web\"", "web", "\"0\", \"1\"", ""];
            ask_if(&router, &method.to_uppercase(), &target, tags[fuzz.below(5) as usize], &body).await
        } else {
            ask(&router, &method.to_uppercase(), &target, &body).await
        };
        assert!(!status.is_server_error(), "{method} {target} {body}: {status} {answer}");
        if status.is_success() {
            done += 1;
        } else {
            assert!(answer["error"]["message"].is_string(), "{method} {target} {body}: {answer}");
        }
    }
    assert!(done > 100, "only {done} requests made sense");
    assert_eq!(ask(&router, "GET", "/v1/status", "").await.0, StatusCode::OK);
}

fn percent(word: &str) -> String {
    word.bytes().fold(String::new(), |text, byte| format!("{text}%{byte:02x}"))
}
