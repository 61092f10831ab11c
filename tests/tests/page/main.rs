//! The status page in a real browser.

mod browser;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::Program,
    scene::{SOON, Scene, Setting},
    wait_until,
};
use serde_json::json;

use browser::Browser;

/// Pages look once a second, and the machine may be busy.
const SEEN: Duration = Duration::from_secs(20);
const READERS: &str = "http://127.0.0.1:8090/";
const OPERATORS: &str = "http://127.0.0.1:8091/";
const ENTER: &str = "\u{e007}";
const TAB: &str = "\u{e004}";

fn wait_text(browser: &Browser, selector: &str, parts: &[&str]) -> Result<()> {
    let look = format!("return document.querySelector('{selector}')?.innerText ?? ''");
    let mut last = String::new();
    wait_until(&format!("{parts:?} in {selector}"), SEEN, || {
        last = browser.text(&look).unwrap_or_default();
        parts.iter().all(|part| last.contains(part))
    })
    .with_context(|| format!("it says {last:?}"))
}

fn holds(browser: &Browser, what: &str, script: &str) -> Result<()> {
    let value = browser.script(script)?;
    ensure!(value == json!(true), "{what}: {value}");
    Ok(())
}

#[test]
fn readers_watch_a_drain() -> Result<()> {
    let scene = Scene::set_with(Setting::default(), &["--status", "127.0.0.1:8090"])?;
    scene.add_web(&[])?;
    let browser = Browser::start(&scene.lab, &scene.lab.balancer)?;
    browser.open(READERS)?;
    wait_text(&browser, "#link", &["live, read-only"])?;

    let (early, held) = (scene.hold(40)?, scene.hold(30)?);
    let (early_at_b1, late_at_b1) = (early.tally().open_at("b1"), held.tally().open_at("b1"));
    let at_b1 = early_at_b1 + late_at_b1;
    for_the_picture();
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    let left = format!("{at_b1} of {at_b1} flows left");
    wait_text(&browser, "tbody tr:nth-child(2)", &["b1", "draining", &left, "to the deadline"])?;
    holds(&browser, "the chart", "return document.querySelectorAll('.chart path.draining').length === 1")?;
    for_the_picture();
    early.finish_and_wait(SOON)?;
    let left = format!("{late_at_b1} of {at_b1} flows left");
    wait_text(&browser, "tbody tr:nth-child(2)", &["draining", &left])?;
    for_the_picture();
    browser.script("document.querySelector('summary').click()")?;
    wait_text(&browser, "details p", &["flows seen to end"])?;
    looks_right(&browser)?;

    held.finish_and_wait(SOON)?;
    wait_text(&browser, "tbody tr:nth-child(2)", &["drained", "last: completed, none cut"])?;
    wait_text(&browser, "#events", &["drain ended: completed, 0 cut"])?;

    holds(&browser, "no buttons for readers", "return document.querySelectorAll('td button').length === 0")?;
    let refused = "return fetch('/v1/services/web/backends/b1/activate', {method: 'POST'}).then(a => a.status)";
    ensure!(browser.script(refused)? == json!(403), "readers may not activate");
    scene.ebb.wait_state("web/b1", "drained", SOON)?;
    // The refusal above is in the log, as it should be; nothing else is.
    let complaints = browser.complaints()?;
    ensure!(complaints.len() == 1 && complaints[0].contains("403"), "{complaints:?}");
    Ok(())
}

/// Gives the chart something to show where pictures are kept.
fn for_the_picture() {
    if std::env::var_os("EBB_PAGE_SHOTS").is_some() {
        std::thread::sleep(Duration::from_secs(8));
    }
}

/// In light and dark, wide and narrow: nothing overlaps or sticks out, contrasts suffice, everything has a name.
fn looks_right(browser: &Browser) -> Result<()> {
    let mut backgrounds = Vec::new();
    for (scheme, width, height) in
        [("light", 1280, 900), ("dark", 1280, 900), ("light", 380, 1400), ("dark", 380, 1400)]
    {
        browser.shape(scheme, width, height)?;
        std::thread::sleep(Duration::from_millis(1_200));
        browser.picture(&format!("{scheme}-{width}"))?;
        let fits = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        holds(browser, &format!("{scheme} at {width} fits"), fits)?;
        let poor = browser.script(CONTRASTS)?;
        ensure!(poor == json!([]), "{scheme}: contrasts below 4.5: {poor}");
        backgrounds.push(browser.text("return getComputedStyle(document.body).backgroundColor")?);
    }
    ensure!(backgrounds[0] != backgrounds[1], "dark is not light: {backgrounds:?}");
    browser.shape("light", 1280, 900)?;

    let tree = browser.devtools("Accessibility.getFullAXTree", &json!({}))?;
    let mut seen = 0;
    for node in tree["nodes"].as_array().context("a tree")? {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        if ["button", "searchbox", "table", "image", "img", "progressbar", "link", "region"].contains(&role) {
            seen += 1;
            let name = node["name"]["value"].as_str().unwrap_or_default();
            ensure!(!name.trim().is_empty(), "without a name: {node}");
        }
    }
    ensure!(seen >= 6, "{seen} things with names");

    browser.keys("/b")?;
    holds(browser, "the key / leads to the filter", "return document.activeElement.id === 'filter'")?;
    browser.keys("\u{e003}")?;
    let foreign = "return performance.getEntriesByType('resource').filter(e => !e.name.startsWith(location.origin))";
    ensure!(browser.script(foreign)? == json!([]), "a request to another host");
    let hostile =
        "happened({at: new Date().toISOString(), kind: 'x', service: '<b>s</b>', reason: '<img src=x onerror=1>'});
        return document.querySelectorAll('#events b, #events img').length === 0
            && document.querySelector('#events').innerText.includes('<img src=x')";
    holds(browser, "names are text", hostile)
}

/// Texts whose contrast with what is behind them is below what WCAG 2.2 asks of small text (1.4.3).
const CONTRASTS: &str = "
    const channels = (c) => c.match(/[0-9.]+/g).map(Number);
    const light = (c) => channels(c).slice(0, 3).map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (channels(c)[3] !== 0) return c; } return 'rgb(255,255,255)'; };
    const poor = [];
    for (const e of document.querySelectorAll('h1, h2, h3, dt, dd, th, td, span, summary, .small, time, footer')) {
        if (!e.innerText?.trim() || !e.checkVisibility()) continue;
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < 4.5) poor.push(`${e.className || e.tagName} ${e.innerText.slice(0, 20)} ${ratio.toFixed(2)}`);
    }
    return poor;";

/// By a forwarded socket, as `ssh -L 8091:/run/ebb/ebb.sock` does it, and with the keyboard alone.
#[test]
fn operators_drain_and_activate_by_keyboard() -> Result<()> {
    let scene = Scene::with_web(Setting::default(), &[])?;
    let socket = format!("UNIX-CONNECT:{}", scene.ebb.socket().display());
    let listen = "TCP-LISTEN:8091,bind=127.0.0.1,fork,reuseaddr";
    let _forwarding = Program::start(&scene.lab, &scene.lab.balancer, "socat", &[listen, &socket])?;
    let browser = Browser::start(&scene.lab, &scene.lab.balancer)?;
    browser.open(OPERATORS)?;
    wait_text(&browser, "tbody tr:nth-child(1)", &["b0", "active", "Drain"])?;

    // Skip link, filter, then the first row's button.
    browser.keys(&TAB.repeat(3))?;
    let focused = browser.text("return document.activeElement.getAttribute('aria-label') ?? ''")?;
    ensure!(focused == "Drain b0", "the third stop is {focused:?}");
    browser.keys(ENTER)?;
    wait_text(&browser, "#question", &["Drain b0?"])?;
    browser.picture("question")?;
    ensure!(scene.ebb.backend("web/b0")?.state == "active", "a question changes nothing");
    browser.keys(&format!("{TAB}{ENTER}"))?;
    scene.ebb.wait_state("web/b0", "drained", SEEN)?;
    wait_text(&browser, "tbody tr:nth-child(1)", &["drained", "Activate"])?;

    browser.script("document.querySelector('td button').focus()")?;
    browser.keys(ENTER)?;
    browser.keys(&format!("{TAB}{ENTER}"))?;
    scene.ebb.wait_state("web/b0", "active", SEEN)?;

    wait_text(&browser, "tbody tr:nth-child(1)", &["active", "Drain"])?;
    scene.ebb.ok(&["drain", "web/b1"])?;
    scene.ebb.ok(&["drain", "web/b2"])?;
    wait_text(&browser, "tbody tr:nth-child(3)", &["drained"])?;
    browser.script("document.querySelector('td button').focus()")?;
    browser.keys(ENTER)?;
    browser.keys(&format!("{TAB}{ENTER}"))?;
    wait_text(&browser, "#alert", &["without a backend for new flows"])?;
    Ok(())
}
