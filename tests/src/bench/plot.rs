//! Nanoseconds a packet against the number of flows, as SVG.

use std::fmt::Write as _;

use super::Row;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const MARGIN: f64 = 60.0;

/// The plot of the rows of one case.
pub fn svg(rows: &[Row], case: &str) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.case == case && row.flows > 0).collect();
    let most_flows = rows.iter().map(|row| f64::from(row.flows)).fold(10.0, f64::max);
    let spreads = rows.iter().flat_map(|row| [Some(row.ebb), row.yardstick]).flatten();
    let most_ns = spreads.map(|spread| spread.max).fold(100.0, f64::max) * 1.05;
    let x = |flows: f64| MARGIN + flows.max(1.0).log10() / most_flows.log10() * (WIDTH - 2.0 * MARGIN);
    let y = |ns: f64| HEIGHT - MARGIN - ns / most_ns * (HEIGHT - 2.0 * MARGIN);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"30\" font-size=\"15\">{case}: ns a packet, net of the driver, against flows</text>\n"
    );
    // Writing to a string cannot fail.
    for i in 0..=5 {
        let ns = most_ns / 5.0 * f64::from(i);
        let at = y(ns);
        let _ = writeln!(
            out,
            "<line x1=\"{MARGIN}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{ns:.0}</text>",
            WIDTH - MARGIN,
            MARGIN - 6.0,
            at + 4.0
        );
    }
    for row in &rows {
        let at = x(row.flows.into());
        let _ = writeln!(
            out,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - MARGIN + 18.0,
            row.flows
        );
    }
    let ebb: Vec<_> = rows.iter().map(|row| (x(row.flows.into()), row.ebb)).collect();
    let yardstick: Vec<_> = rows.iter().filter_map(|row| Some((x(row.flows.into()), row.yardstick?))).collect();
    for (name, colour, points) in [("Ebb", "#0a6", ebb), ("yardstick", "#c60", yardstick)] {
        let line: Vec<String> = points.iter().map(|(x, spread)| format!("{x:.1},{:.1}", y(spread.median))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for (x, spread) in &points {
            let (top, bottom) = (y(spread.max), y(spread.min));
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\" stroke=\"{colour}\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                y(spread.median)
            );
        }
        if let Some((x, spread)) = points.last() {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
                x - 20.0,
                y(spread.median) - 10.0
            );
        }
    }
    out.push_str("</svg>\n");
    out
}
