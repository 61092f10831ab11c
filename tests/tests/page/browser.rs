//! A real browser without a window, driven as the WebDriver standard has it (w3.org/TR/webdriver2), on a host of the lab.

use std::{
    fs::File,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use ebb_tests::{
    lab::{Lab, Namespace, Program},
    wait_until,
};
use serde_json::{Value, json};

/// Where the driver listens, within its host.
const DRIVER: &str = "http://127.0.0.1:9515";
/// A browser takes its time to start on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(1);

/// The browser and its driver; both end when it is dropped.
pub(crate) struct Browser {
    session: String,
    host: Namespace,
    _driver: Program,
}

impl Browser {
    /// Starts one on `host`, with an empty profile.
    pub(crate) fn start(lab: &Lab, host: &Namespace) -> Result<Self> {
        let driver = Program::start(lab, host, "chromedriver", &["--port=9515"])?;
        let mut browser = Self { session: String::new(), host: host.clone(), _driver: driver };
        wait_until("the browser's driver", START_LIMIT, || browser.call("GET", "/status", None).is_ok())?;
        let profile = format!("--user-data-dir={}", lab.directory().join("profile").display());
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &profile,
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": flags },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = browser.call("POST", "/session", Some(&wanted)).context("start chromium")?;
        session["sessionId"].as_str().context("a session")?.clone_into(&mut browser.session);
        Ok(browser)
    }

    pub(crate) fn open(&self, url: &str) -> Result<()> {
        self.post("url", &json!({ "url": url })).map(drop)
    }

    /// Runs a function's body in the page and returns its value, also of a promise.
    pub(crate) fn script(&self, body: &str) -> Result<Value> {
        self.post("execute/sync", &json!({ "script": body, "args": [] })).with_context(|| body.to_owned())
    }

    /// A script's value as text.
    pub(crate) fn text(&self, body: &str) -> Result<String> {
        Ok(self.script(body)?.as_str().unwrap_or_default().to_owned())
    }

    /// Types keys, whatever has the focus.
    pub(crate) fn keys(&self, keys: &str) -> Result<()> {
        let each = |key| [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })];
        let actions: Vec<Value> = keys.chars().map(String::from).flat_map(each).collect();
        let keyboard = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] });
        self.post("actions", &keyboard).map(drop)
    }

    /// A command of the browser's own protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) -> Result<Value> {
        self.post("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// What the browser had to complain about: errors of scripts, refused requests.
    pub(crate) fn complaints(&self) -> Result<Vec<String>> {
        let log = self.post("se/log", &json!({ "type": "browser" }))?;
        let entries = log.as_array().context("a list")?.iter();
        Ok(entries.filter_map(|entry| entry["message"].as_str()).map(str::to_owned).collect())
    }

    /// Draws the page for such a screen; kept as a picture where `EBB_PAGE_SHOTS` says.
    pub(crate) fn shape(&self, scheme: &str, width: u32, height: u32) -> Result<()> {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", &features)?;
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &size)?;
        self.devtools("Emulation.setScrollbarsHidden", &json!({ "hidden": true }))?;
        Ok(())
    }

    pub(crate) fn picture(&self, name: &str) -> Result<()> {
        let Some(directory) = std::env::var_os("EBB_PAGE_SHOTS") else { return Ok(()) };
        let picture = self.devtools("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }))?;
        let file = File::create(PathBuf::from(directory).join(format!("{name}.png")))?;
        let mut decode = Command::new("base64").arg("--decode").stdin(Stdio::piped()).stdout(file).spawn()?;
        let data = picture["data"].as_str().context("a picture")?;
        decode.stdin.take().context("its input")?.write_all(data.as_bytes())?;
        ensure!(decode.wait()?.success(), "base64 --decode");
        Ok(())
    }

    fn post(&self, command: &str, body: &Value) -> Result<Value> {
        self.call("POST", &format!("/session/{}/{command}", self.session), Some(body))
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let url = format!("{DRIVER}{path}");
        let answer: Value = self.host.run(|| {
            let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
            let mut answer = match (method, body) {
                ("GET", _) => agent.get(&url).call()?,
                ("DELETE", _) => agent.delete(&url).call()?,
                (_, body) => agent.post(&url).send_json(body)?,
            };
            answer.body_mut().with_config().limit(64 << 20).read_json::<Value>()
        })??;
        let value = answer["value"].clone();
        if let Some(error) = value["error"].as_str() {
            bail!("{error}: {}", value["message"].as_str().unwrap_or_default());
        }
        Ok(value)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.call("DELETE", &format!("/session/{}", self.session), None);
    }
}
