//! Line charts as SVG: a page of panels, each with two axes, lines with whiskers, and nothing else.
//!
//! A page is white by itself, so that it reads well on dark backgrounds too, and has no font, script or link of its own.

use std::fmt::Write;

/// The colours of lines, in turn: Okabe and Ito's, which the colour-blind can tell apart.
const COLOURS: [&str; 5] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666"];
const PANEL: (f64, f64) = (440.0, 300.0);
/// Room around a panel's plot: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (62.0, 14.0, 34.0, 46.0);
const PANELS_IN_A_ROW: usize = 2;
const HEAD: f64 = 58.0;
const NOTE: f64 = 16.0;

/// How values become places.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// Equal ratios are equal distances.
    Log,
    /// Equal differences are equal distances; begins at zero.
    Linear,
    /// These values, in this order, at equal distances.
    Categories(Vec<f64>),
}

/// One axis: what it shows, from where to where, and where it has marks.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    name: String,
    scale: Scale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis with marks at these values and no others.
    #[must_use]
    pub fn marked(name: &str, scale: Scale, ticks: Vec<(f64, String)>) -> Self {
        let places: Vec<f64> = ticks.iter().filter_map(|(value, _)| project(&scale, *value)).collect();
        let (low, high) = bounds(&places).unwrap_or((0.0, 1.0));
        // A line should not run along the frame.
        let room = if high > low { (high - low) * 0.06 } else { 0.5 };
        Self { name: name.into(), scale, low: low - room, high: high + room, ticks }
    }

    /// A logarithmic axis on which all these values have a place, with round numbers as marks.
    #[must_use]
    pub fn log(name: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let positive: Vec<f64> = values.into_iter().filter(|value| value.is_finite() && *value > 0.0).collect();
        let (least, most) = bounds(&positive).unwrap_or((1.0, 10.0));
        let (low, high) = (round_number(least, Round::Down), round_number(most, Round::Up));
        let (low, high) = if low < high { (low, high) } else { (low / 2.0, high * 2.0) };
        let decades = (high / low).log10();
        let steps: &[f64] = if decades <= 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let mut ticks = Vec::new();
        for exponent in low.log10().floor() as i32..=high.log10().ceil() as i32 {
            for step in steps {
                let value = step * 10f64.powi(exponent);
                if value >= low * 0.999 && value <= high * 1.001 {
                    ticks.push((value, number(value)));
                }
            }
        }
        Self { name: name.into(), scale: Scale::Log, low: low.log10(), high: high.log10(), ticks }
    }

    /// An axis from zero on which all these values have a place.
    #[must_use]
    pub fn linear(name: &str, values: impl IntoIterator<Item = f64>) -> Self {
        let most = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max);
        let most = if most > 0.0 { most } else { 1.0 };
        let step = round_number(most / 5.0, Round::Up);
        let count = (most / step).ceil().max(1.0);
        let ticks = (0..=count as u32).map(|n| (f64::from(n) * step, number(f64::from(n) * step))).collect();
        Self { name: name.into(), scale: Scale::Linear, low: 0.0, high: count * step, ticks }
    }

    /// Where a value is, from 0 to 1; none where it has no place, such as zero on a logarithmic axis.
    #[must_use]
    pub fn place(&self, value: f64) -> Option<f64> {
        let place = (project(&self.scale, value)? - self.low) / (self.high - self.low);
        place.is_finite().then_some(place)
    }
}

fn project(scale: &Scale, value: f64) -> Option<f64> {
    match scale {
        Scale::Log => (value > 0.0 && value.is_finite()).then(|| value.log10()),
        Scale::Linear => value.is_finite().then_some(value),
        Scale::Categories(all) => all.iter().position(|one| *one == value).map(|n| n as f64),
    }
}

fn bounds(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().reduce(f64::min)?;
    Some((least, values.iter().copied().fold(least, f64::max)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    Down,
    Up,
}

/// The next of 1, 2 and 5 times a power of ten, below or above a positive value.
fn round_number(value: f64, round: Round) -> f64 {
    let decade = 10f64.powi(value.log10().floor() as i32);
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    // What is a round number but for the last bit stays what it is.
    let found = match round {
        Round::Down => steps.iter().rev().find(|step| **step <= value * (1.0 + 1e-9)),
        Round::Up => steps.iter().find(|step| **step >= value * (1.0 - 1e-9)),
    };
    found.copied().unwrap_or(value)
}

/// A number as a mark of an axis has it: `0.05`, `20`, `50k`, `2M`.
#[must_use]
pub fn number(value: f64) -> String {
    let (value, unit) = match value.abs() {
        size if size >= 999_999.5 => (value / 1e6, "M"),
        size if size >= 9_999.5 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    // As many digits as tell values apart that differ by a tenth.
    let digits = if value == 0.0 { 0 } else { (1 - value.abs().log10().floor() as i32).max(0) as usize };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// A value of a line, and how far it went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// The value.
    pub y: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Which colour: the same number means the same thing in all panels of a page.
    pub colour: usize,
    /// Whether it is a broken one.
    pub dashed: bool,
    /// Its points.
    pub marks: Vec<Mark>,
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// From left to right.
    pub x: Axis,
    /// From the bottom to the top.
    pub y: Axis,
    /// Its lines.
    pub lines: Vec<Line>,
    /// A level that matters, and its name.
    pub level: Option<(f64, String)>,
}

/// Charts that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// What they show.
    pub title: String,
    /// The names of the colours, and of broken lines of this colour where there are any.
    pub legend: Vec<String>,
    /// What a broken line is, if there is any.
    pub dashed: Option<String>,
    /// The charts, by rows.
    pub panels: Vec<Panel>,
    /// Where the numbers come from, line by line.
    pub notes: Vec<String>,
}

impl Page {
    /// The page as an SVG document.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let rows = self.panels.len().div_ceil(PANELS_IN_A_ROW).max(1);
        let columns = self.panels.len().clamp(1, PANELS_IN_A_ROW);
        let foot = HEAD + PANEL.1 * rows as f64;
        let (width, height) = (PANEL.0 * columns as f64, foot + NOTE * self.notes.len() as f64 + 10.0);
        let mut svg = Svg::default();
        svg.line(&format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" {FONT} fill="#222222">"##
        ));
        svg.line(&format!("<title>{}</title>", escaped(&self.title)));
        svg.line(&format!(r##"<rect width="{width}" height="{height}" fill="#ffffff"/>"##));
        svg.text((14.0, 24.0), r#"font-size="16" font-weight="bold""#, &self.title);
        self.draw_legend(&mut svg);
        for (n, panel) in self.panels.iter().enumerate() {
            let (column, row) = (n % PANELS_IN_A_ROW, n / PANELS_IN_A_ROW);
            panel.draw(&mut svg, (PANEL.0 * column as f64, HEAD + PANEL.1 * row as f64));
        }
        for (n, note) in self.notes.iter().enumerate() {
            svg.text((14.0, foot + NOTE * (n + 1) as f64), r##"font-size="11" fill="#555555""##, note);
        }
        svg.line("</svg>");
        svg.0
    }

    fn draw_legend(&self, svg: &mut Svg) {
        let mut x = 14.0;
        let samples = self.legend.iter().enumerate().map(|(n, name)| (colour(n), false, name));
        for (colour, dashed, name) in samples.chain(self.dashed.iter().map(|name| ("#222222", true, name))) {
            svg.stroke((x, 43.0), (x + 22.0, 43.0), colour, if dashed { DASHED } else { SOLID });
            svg.text((x + 28.0, 47.0), "", name);
            // Letters are this wide at most, nearly always.
            x += 28.0 + name.chars().count() as f64 * 6.6 + 22.0;
        }
    }
}

const FONT: &str = r#"font-family="Helvetica, Arial, 'DejaVu Sans', sans-serif" font-size="12""#;
const SOLID: &str = r#"stroke-width="2""#;
const DASHED: &str = r#"stroke-width="1.5" stroke-dasharray="5 4""#;
const GRID: &str = r#"stroke-width="1""#;

fn colour(n: usize) -> &'static str {
    COLOURS[n % COLOURS.len()]
}

impl Panel {
    fn draw(&self, svg: &mut Svg, at: (f64, f64)) {
        let (left, top) = (at.0 + MARGIN.0, at.1 + MARGIN.2);
        let (right, bottom) = (at.0 + PANEL.0 - MARGIN.1, at.1 + PANEL.1 - MARGIN.3);
        let x = |value| self.x.place(value).map(|place| left + place * (right - left));
        let y = |value| self.y.place(value).map(|place| bottom - place * (bottom - top));
        svg.text((left, at.1 + 22.0), r#"font-weight="bold""#, &self.title);
        for (value, label) in &self.x.ticks {
            let Some(x) = x(*value) else { continue };
            svg.stroke((x, top), (x, bottom), "#e4e4e4", GRID);
            svg.text((x, bottom + 16.0), r#"text-anchor="middle""#, label);
        }
        for (value, label) in &self.y.ticks {
            let Some(y) = y(*value) else { continue };
            svg.stroke((left, y), (right, y), "#e4e4e4", GRID);
            svg.text((left - 6.0, y + 4.0), r#"text-anchor="end""#, label);
        }
        svg.line(&format!(
            r##"<rect x="{left:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" fill="none" stroke="#888888"/>"##,
            right - left,
            bottom - top
        ));
        svg.text(((left + right) / 2.0, bottom + 36.0), r#"text-anchor="middle""#, &self.x.name);
        let turned =
            format!(r#"text-anchor="middle" transform="rotate(-90 {:.1} {:.1})""#, at.0 + 14.0, (top + bottom) / 2.0);
        svg.text((at.0 + 14.0, (top + bottom) / 2.0), &turned, &self.y.name);
        if let Some((value, name)) = &self.level
            && let Some(y) = y(*value)
        {
            svg.stroke((left, y), (right, y), "#999999", DASHED);
            svg.text((right - 4.0, y + 13.0), r##"text-anchor="end" font-size="11" fill="#777777""##, name);
        }
        for line in &self.lines {
            line.draw(svg, x, y);
        }
    }
}

impl Line {
    /// What has no place is left out, and the line goes on behind it.
    fn draw(&self, svg: &mut Svg, x: impl Fn(f64) -> Option<f64>, y: impl Fn(f64) -> Option<f64>) {
        let colour = colour(self.colour);
        let places: Vec<_> = self.marks.iter().filter_map(|mark| Some((x(mark.x)?, y(mark.y)?, mark))).collect();
        let points: Vec<_> = places.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
        svg.line(&format!(
            r#"<polyline points="{}" fill="none" stroke="{colour}" {}/>"#,
            points.join(" "),
            if self.dashed { DASHED } else { SOLID }
        ));
        for (x, at, mark) in places {
            if let (Some(least), Some(most)) = (y(mark.least), y(mark.most)) {
                svg.stroke((x, least), (x, most), colour, GRID);
            }
            let radius = if self.dashed { 2.0 } else { 3.5 };
            svg.line(&format!(r#"<circle cx="{x:.1}" cy="{at:.1}" r="{radius}" fill="{colour}"/>"#));
        }
    }
}

#[derive(Default)]
struct Svg(String);

impl Svg {
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn text(&mut self, at: (f64, f64), style: &str, text: &str) {
        let space = if style.is_empty() { "" } else { " " };
        // Writing to a string does not fail.
        let _ = writeln!(self.0, r#"<text x="{:.1}" y="{:.1}"{space}{style}>{}</text>"#, at.0, at.1, escaped(text));
    }

    fn stroke(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, style: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.0,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" {style}/>"#
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
#[path = "svg_tests.rs"]
mod tests;
