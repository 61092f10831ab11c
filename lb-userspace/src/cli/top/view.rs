//! How the model looks in a terminal, from 80 columns by 24 lines up.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Paragraph, Row, Table, TableState},
};

use super::model::{Model, Rates, Request};
use crate::{
    cli::show,
    control::model::{BackendStatus, DrainStatus, ServiceStatus, State, Status},
};

const KEYS: &str = " up/down select   d drain   a activate   q quit";
/// Cells of a drain's bar.
const BAR: usize = 10;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(2)]).areas(frame.area());
    match &model.status {
        Some(status) => {
            frame.render_widget(header(status), head);
            services(frame, body, model, status);
        }
        None => frame.render_widget(Paragraph::new(" waiting for the daemon"), body),
    }
    frame.render_widget(footer(model), foot);
}

fn header(status: &Status) -> Paragraph<'static> {
    let interfaces: Vec<String> =
        status.datapath.interfaces.iter().map(|found| format!("{} {}", found.name, found.mode)).collect();
    let flows = &status.datapath.flows;
    let text = format!(
        " ebb top  {}  flows: {} live ({} opening), {} closing, room {}",
        interfaces.join(", "),
        flows.live,
        flows.opening,
        flows.closing,
        flows.capacity
    );
    Paragraph::new(Line::styled(text, Style::new().add_modifier(Modifier::BOLD)))
}

fn services(frame: &mut Frame<'_>, area: Rect, model: &Model, status: &Status) {
    let mut rows = Vec::new();
    let mut selected = None;
    for service in &status.services {
        rows.push(service_row(service));
        for backend in &service.backends {
            if model.selection().is_some_and(|(s, b)| (&s.name, &b.name) == (&service.name, &backend.name)) {
                selected = Some(rows.len());
            }
            rows.push(backend_row(backend, model.rates(&service.name, &backend.name)));
        }
    }
    if rows.is_empty() {
        frame.render_widget(Paragraph::new(" no services; add one with \"ebb service add\""), area);
        return;
    }
    let columns = [
        Constraint::Length(17),
        Constraint::Length(18),
        Constraint::Length(7),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Min(18),
    ];
    let titles = ["BACKEND", "STATE", "FLOWS", "NEW/S", "PKT/S", "BYTES/S"].map(str::to_owned);
    let table = Table::new(rows, columns)
        .header(cells(titles).style(Style::new().add_modifier(Modifier::UNDERLINED)))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .column_spacing(1);
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(selected));
}

fn service_row(service: &ServiceStatus) -> Row<'static> {
    let active = service.backends.iter().filter(|backend| backend.state == State::Active).count();
    let flows: u64 = service.backends.iter().map(|backend| backend.active_flows).sum();
    cells([
        service.name.clone(),
        format!("{active} of {} active", service.backends.len()),
        flows.to_string(),
        String::new(),
        String::new(),
        service.vip.to_string(),
    ])
    .style(Style::new().add_modifier(Modifier::BOLD))
}

fn backend_row(backend: &BackendStatus, rates: Option<Rates>) -> Row<'static> {
    let rate = |value: fn(Rates) -> f64| rates.map_or_else(|| "-".to_owned(), |rates| amount(value(rates)));
    let last = match &backend.drain {
        Some(drain) => progress(drain),
        None => rate(|rates| rates.bytes),
    };
    cells([
        format!("  {}", backend.name),
        show::state(backend.state).to_owned(),
        backend.active_flows.to_string(),
        rate(|rates| rates.new_flows),
        rate(|rates| rates.packets),
        last,
    ])
    .style(Style::new().fg(color(backend.state)))
}

/// Words to the left, numbers to the right.
fn cells([name, state, numbers @ .., last]: [String; 6]) -> Row<'static> {
    let [flows, new, packets] = numbers.map(|number| Line::from(number).right_aligned());
    Row::new([Line::from(name), Line::from(state), flows, new, packets, Line::from(last)])
}

/// `[#######---] 41s`: full when the drain began, empty when no flow is left.
fn progress(drain: &DrainStatus) -> String {
    let initial = drain.initial_flows.max(drain.remaining_flows).max(1);
    let cells = (drain.remaining_flows * BAR as u64).div_ceil(initial) as usize;
    let left = drain.remaining_s.map_or_else(|| "no end".to_owned(), |left| format!("{left:.0}s"));
    format!("[{}{}] {left}", "#".repeat(cells), "-".repeat(BAR.saturating_sub(cells)))
}

fn color(state: State) -> Color {
    match state {
        State::Active => Color::Green,
        State::Draining | State::Initial => Color::Yellow,
        State::Drained => Color::DarkGray,
        State::Unhealthy | State::UnhealthyDraining => Color::Red,
    }
}

/// A rate in at most six cells.
fn amount(value: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut value = value;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let suffix = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 && value >= 10.0 || value == 0.0 {
        format!("{value:.0}{suffix}")
    } else {
        format!("{value:.1}{suffix}")
    }
}

fn footer(model: &Model) -> Paragraph<'static> {
    let alert = Style::new().add_modifier(Modifier::BOLD).fg(Color::Yellow);
    let first = match (&model.asking, &model.message) {
        (Some(request), _) => Line::styled(question(model, request), alert),
        (None, Some(message)) => Line::styled(format!(" {message}"), alert),
        (None, None) => Line::from(reason(model)),
    };
    Paragraph::new(vec![first, Line::from(Span::raw(KEYS))])
}

fn reason(model: &Model) -> String {
    model.selection().map_or_else(String::new, |(service, backend)| {
        format!(" {}/{} ({}): {}", service.name, backend.name, backend.address, backend.reason)
    })
}

fn question(model: &Model, request: &Request) -> String {
    match request {
        Request::Drain { service, backend } => {
            let (flows, delay) = model.selection().map_or((0, String::new()), |(service, backend)| {
                (backend.active_flows, format!(", at most {}", service.drain_timeout_s))
            });
            format!(" drain {service}/{backend}: {flows} live flows{delay}? y/n")
        }
        Request::Activate { service, backend } => format!(" activate {service}/{backend}? y/n"),
        Request::Quit => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use crossterm::event::{KeyCode, KeyEvent};
    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::model, *};

    fn screen(model: &Model) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal in memory");
        terminal.draw(|frame| draw(frame, model)).expect("draws");
        let buffer = terminal.backend().buffer();
        buffer
            .content()
            .chunks(80)
            .map(|cells| cells.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned())
            .collect()
    }

    #[test]
    fn it_all_fits_into_80_by_24() {
        let lines = screen(&model::tests::model());
        let shown = lines.join("\n");
        assert_eq!(lines.len(), 24);
        for expected in [
            " ebb top  eth0 native  flows: 21 live (1 opening), 2 closing, room 65536",
            "web               1 of 2 active           14                  10.0.0.100:80/tcp",
            "  web-1           active                   7      10        0 0",
            "  web-2           draining                 7       0        0 [#####-----] 42s",
            "  dns-1           active                   7       0        0 0",
            KEYS,
        ] {
            assert!(lines.iter().any(|line| line == expected), "no {expected:?} in\n{shown}");
        }
    }

    #[test]
    fn a_question_says_what_is_at_stake() {
        let mut model = model::tests::model();
        model.key(KeyEvent::from(KeyCode::Char('d')));
        let shown = screen(&model).join("\n");
        assert!(shown.contains("drain web/web-1: 7 live flows, at most 5m? y/n"), "{shown}");
    }

    #[test]
    fn without_services_it_says_how_to_add_one() {
        let mut model = Model::default();
        let mut status = model::tests::status(0);
        status.services.clear();
        model.look(status, std::time::Instant::now());
        assert!(screen(&model).join("\n").contains("ebb service add"));
    }

    #[test]
    fn amounts_stay_short() {
        for (value, text) in [(0.0, "0"), (0.25, "0.2"), (9.94, "9.9"), (10.0, "10"), (1234.0, "1.2k"), (5e9, "5.0G")] {
            assert_eq!(amount(value), text);
        }
    }
}
