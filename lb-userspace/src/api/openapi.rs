//! The operations and their description, made by one call each: an operation cannot be served without being described, nor
//! described without being served. The schemas come from the very types that are read and written.

use axum::{
    Router,
    handler::Handler,
    http::{Method, StatusCode},
    routing::{MethodFilter, on},
};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    error::ErrorDocument,
    rights::{Need, Needs, Right},
};

const TEXT: &str = "Everything that the command line does to services, as JSON over HTTP, on the daemon's Unix socket and, \
    if it is told to listen, over mutual TLS. On the socket every caller may do everything; over TLS each operation says in x-rights \
    which rights allow it, own_address only for the backends at the caller's own address. Durations are seconds, times RFC 3339. Fields may be added; a client ignores those it does not know.";

/// An operation before it is served.
pub(super) struct Operation {
    method: MethodFilter,
    method_name: &'static str,
    path: &'static str,
    summary: &'static str,
    query: Option<Make>,
    body: Option<Make>,
    status: StatusCode,
    answer: Option<Make>,
    streams: bool,
    own: bool,
    tagged: bool,
}

type Make = fn(&mut SchemaGenerator) -> Value;

fn make<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

macro_rules! methods {
    ($($name:ident $filter:ident),*) => {$(
        #[doc = concat!("An operation by `", stringify!($filter), "`.")]
        pub(super) fn $name(path: &'static str, summary: &'static str) -> Operation {
            Operation {
                method: MethodFilter::$filter,
                method_name: stringify!($name),
                path,
                summary,
                query: None,
                body: None,
                status: StatusCode::OK,
                answer: None,
                streams: false,
                own: false,
                tagged: false,
            }
        }
    )*};
}
methods!(get GET, post POST, patch PATCH, delete DELETE);

impl Operation {
    /// It reads these query parameters.
    pub(super) fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(make::<T>);
        self
    }

    /// It reads this body.
    pub(super) fn body<T: JsonSchema>(mut self) -> Self {
        self.body = Some(make::<T>);
        self
    }

    /// It answers with this.
    pub(super) fn answer<T: JsonSchema>(mut self) -> Self {
        self.answer = Some(make::<T>);
        self
    }

    /// It makes something new.
    pub(super) fn creates(mut self) -> Self {
        self.status = StatusCode::CREATED;
        self
    }

    /// It can also answer with server-sent events.
    pub(super) fn streams(mut self) -> Self {
        self.streams = true;
        self
    }

    /// A remote caller may use it on its own backends without a further right.
    pub(super) fn own(mut self) -> Self {
        self.own = true;
        self
    }

    /// Its answer has an `ETag`, for `If-Match` in a change.
    pub(super) fn tagged(mut self) -> Self {
        self.tagged = true;
        self
    }

    fn method(&self) -> Method {
        self.method_name.to_uppercase().parse().unwrap_or_default()
    }

    fn need(&self) -> Need {
        Need { own: self.own, ..Need::of_method(&self.method()) }
    }
}

/// Operations that are served, and their description.
pub(super) struct Api<S> {
    router: Router<S>,
    paths: Map<String, Value>,
    needs: Needs,
    requests: SchemaGenerator,
    answers: SchemaGenerator,
}

impl<S: Clone + Send + Sync + 'static> Api<S> {
    /// None yet.
    pub(super) fn new() -> Self {
        let settings = || SchemaSettings::draft2020_12().with(|settings| settings.meta_schema = None);
        Self {
            router: Router::new(),
            paths: Map::new(),
            needs: Needs::new(),
            // What is read and what is written differ in what may be missing, so requests have no names in common with answers.
            requests: settings().with(|settings| settings.inline_subschemas = true).for_deserialize().into_generator(),
            answers: settings()
                .with(|settings| settings.definitions_path = "/components/schemas".into())
                .for_serialize()
                .into_generator(),
        }
    }

    /// Serves and describes one more.
    pub(super) fn operation<T: 'static>(mut self, operation: &Operation, handler: impl Handler<T, S>) -> Self {
        let described = self.describe(operation);
        let path = self.paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method_name] = described;
        self.needs.insert((operation.path, operation.method()), operation.need());
        self.router = self.router.route(operation.path, on(operation.method, handler));
        self
    }

    /// The router, the document that describes it, and what each operation takes of a remote caller.
    pub(super) fn finish(mut self) -> (Router<S>, Value, Needs) {
        let document = json!({
            "openapi": "3.1.0",
            "info": { "title": "Ebb", "version": env!("CARGO_PKG_VERSION"), "description": TEXT },
            "paths": self.paths,
            "components": { "schemas": self.answers.take_definitions(true) },
        });
        (self.router, document, self.needs)
    }

    fn describe(&mut self, operation: &Operation) -> Value {
        let mut parameters = path_parameters(operation.path);
        if let Some(query) = operation.query {
            parameters.extend(query_parameters(&query(&mut self.requests)));
        }
        if operation.need().right == Right::Admin {
            parameters.push(json!({
                "name": "If-Match", "in": "header", "required": false, "schema": { "type": "string" },
                "description": "Refuse the change (412) unless this is still the ETag: of the service that the path names, \
                    or of /v1/services where it names none",
            }));
        }
        let mut content = json!({});
        if let Some(answer) = operation.answer {
            content["application/json"] = json!({ "schema": answer(&mut self.answers) });
        }
        if operation.streams {
            content["text/event-stream"] = json!({ "schema": { "type": "string" } });
        }
        let error = json!({ "schema": make::<ErrorDocument>(&mut self.answers) });
        let mut described = json!({
            "operationId": operation_id(operation),
            "summary": operation.summary,
            "parameters": parameters,
            "x-rights": operation.need().words(),
            "responses": {
                operation.status.as_str(): { "description": "Done", "content": content },
                "default": { "description": "Nothing was changed", "content": { "application/json": error } },
            },
        });
        if operation.tagged {
            let tag =
                json!({ "ETag": { "description": "The revision, for If-Match", "schema": { "type": "string" } } });
            described["responses"][operation.status.as_str()]["headers"] = tag;
        }
        if let Some(body) = operation.body {
            let schema = body(&mut self.requests);
            // An empty body stands for an empty object.
            let required = schema.get("required").is_some();
            described["requestBody"] =
                json!({ "required": required, "content": { "application/json": { "schema": schema } } });
        }
        described
    }
}

/// `get_v1_services_service`: stable as long as the path is.
fn operation_id(operation: &Operation) -> String {
    let path: String = operation.path.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let words: Vec<&str> = path.split('_').filter(|word| !word.is_empty()).collect();
    format!("{}_{}", operation.method_name, words.join("_"))
}

fn path_parameters(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })).collect()
}

fn query_parameters(schema: &Value) -> Vec<Value> {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let properties = schema["properties"].as_object().cloned().unwrap_or_default();
    properties
        .into_iter()
        .map(|(name, schema)| {
            let required = required.contains(&Value::String(name.clone()));
            let description = schema["description"].clone();
            json!({ "name": name, "in": "query", "required": required, "description": description, "schema": schema })
        })
        .collect()
}
