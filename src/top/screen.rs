//! The screen: one pool at a time, drawn from the latest answer.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Sparkline, SparklineBar, Table, Wrap};

use super::port::NoStatus;
use super::words;
use crate::status::{Event, Holder, Level, PoolStatus, Sample, Status, span};

/// An answer older than this is called old.
const OLD: Duration = Duration::from_secs(5);
/// Least height at which the last quarter of an hour is drawn.
const HEIGHT_WITH_CHART: u16 = 18;
/// Least width at which addresses are shown.
const WIDTH_WITH_ADDRESS: u16 = 120;
/// The window of a pool's history.
const WINDOW_MS: u64 = 15 * 60 * 1000;
/// What stands before a chart.
const LABEL_WIDTH: u16 = 12;

/// What is shown.
pub(super) struct View {
    url: String,
    latest: Option<Status>,
    answered: Option<Instant>,
    trouble: Option<String>,
    pool: usize,
    scroll: usize,
}

impl View {
    pub(super) fn new(url: String) -> Self {
        Self { url, latest: None, answered: None, trouble: None, pool: 0, scroll: 0 }
    }

    /// Takes an answer; a failure leaves what was known on the screen.
    pub(super) fn hear(&mut self, answer: Result<Status, NoStatus>, now: Instant) {
        match answer {
            Ok(status) => {
                self.pool = self.pool.min(status.pools.len().saturating_sub(1));
                (self.latest, self.answered, self.trouble) = (Some(status), Some(now), None);
            }
            Err(problem) => self.trouble = Some(problem.to_string()),
        }
    }

    pub(super) fn scroll_down(&mut self, rows: usize) {
        self.scroll = self.scroll.saturating_add(rows);
    }

    pub(super) fn scroll_up(&mut self, rows: usize) {
        self.scroll = self.scroll.saturating_sub(rows);
    }

    pub(super) fn next_pool(&mut self) {
        self.turn(1);
    }

    pub(super) fn previous_pool(&mut self) {
        self.turn(self.pools().saturating_sub(1));
    }

    fn turn(&mut self, by: usize) {
        (self.pool, self.scroll) = ((self.pool + by) % self.pools().max(1), 0);
    }

    fn pools(&self) -> usize {
        self.latest.as_ref().map_or(0, |status| status.pools.len())
    }
}

/// Draws all of it; scrolling past the end is taken back.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View, now: Instant) {
    let trouble = trouble(view, now);
    let width = frame.area().width;
    let [title, problem, rest, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(height_of(&trouble, width, 3)),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Line::from(heading(view)).bold(), title);
    frame.render_widget(wrapped(trouble, Style::new().fg(Color::Red).bold()), problem);
    frame.render_widget(Line::from(KEYS).dim(), keys);
    let Some(status) = &view.latest else { return };
    match status.pools.get(view.pool) {
        Some(pool) => view.scroll = draw_pool(frame, rest, pool, status, view.scroll),
        None => frame.render_widget("There are no pools.", rest),
    }
}

const KEYS: &str = "q quit  Tab next pool  ↑↓ scroll";

fn heading(view: &View) -> String {
    let Some(status) = &view.latest else { return format!("tidegate at {}", view.url) };
    let draining = if status.draining { ", shutting down" } else { "" };
    let pools = match status.pools.len() {
        0 | 1 => String::new(),
        all => format!("  pool {} of {all}", view.pool + 1),
    };
    let up = span(status.uptime_seconds);
    format!("tidegate {} at {}, up for {up}{draining}{pools}", status.version, view.url)
}

fn trouble(view: &View, now: Instant) -> String {
    let age = view.answered.map(|answered| now.saturating_duration_since(answered));
    let old = age.map(|age| format!(" What follows is {} old.", span(age.as_secs_f64())));
    match (&view.trouble, age) {
        (Some(problem), _) => format!("{problem}.{}", old.unwrap_or_default()),
        (None, Some(age)) if age > OLD => old.unwrap_or_default(),
        (None, Some(_)) => String::new(),
        (None, None) => "Asking.".to_owned(),
    }
}

/// Draws one pool; how far its holders are scrolled.
fn draw_pool(
    frame: &mut Frame<'_>,
    area: Rect,
    pool: &PoolStatus,
    status: &Status,
    scroll: usize,
) -> usize {
    let sentence = words::sentence(pool, status.at_ms);
    let advice = &pool.verdict.advice;
    let chart_height = if area.height >= HEIGHT_WITH_CHART { 2 } else { 0 };
    let counts = words::counts(pool);
    let limits = words::limits(pool);
    let events: Vec<&Event> =
        status.events.iter().filter(|event| event.pool == pool.name).collect();
    let [name, verdict, todo, bar, states, chart, bounds, mut holders, lately] =
        Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(height_of(&sentence, area.width, 2)),
            Constraint::Length(height_of(advice, area.width, 3)),
            Constraint::Length(1),
            Constraint::Length(height_of(&counts, area.width, 2)),
            Constraint::Length(chart_height),
            Constraint::Length(height_of(&limits, area.width, 2)),
            Constraint::Min(3),
            Constraint::Length(lately_height(&events, area.height)),
        ])
        .areas(area);
    let title = vec![pool.name.as_str().bold(), " ".into(), words::place(pool).dim()];
    frame.render_widget(Line::from(title), name);
    frame.render_widget(wrapped(sentence, tone(pool.verdict.level).bold()), verdict);
    frame.render_widget(wrapped(advice.clone(), Style::new()), todo);
    frame.render_widget(saturation(pool, bar.width), bar);
    frame.render_widget(wrapped(counts, Style::new()), states);
    draw_charts(frame, chart, &pool.history, status.at_ms);
    frame.render_widget(wrapped(limits, Style::new().dim()), bounds);
    frame.render_widget(wrapped(happened(&events, status.at_ms), Style::new()), lately);
    if !pool.lanes.is_empty() || !pool.namespaces.is_empty() {
        holders = draw_lanes(frame, holders, pool);
    }
    draw_holders(frame, holders, &pool.holders, scroll)
}

fn tone(level: Level) -> Style {
    Style::new().fg(match level {
        Level::Idle | Level::Well => Color::Green,
        Level::Exhausted | Level::Unreachable => Color::Red,
        Level::Reduced | Level::Rising | Level::Full | Level::Leaking | Level::Waiting => {
            Color::Yellow
        }
    })
}

fn wrapped<'a>(text: String, style: Style) -> Paragraph<'a> {
    Paragraph::new(Text::from(text).style(style)).wrap(Wrap { trim: true })
}

/// How many lines `text` takes when it is wrapped at words, `most` at most.
fn height_of(text: &str, width: u16, most: u16) -> u16 {
    let width = usize::from(width.max(1));
    let (mut lines, mut column) = (0, width + 1);
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column + 1 + length > width {
            // A word longer than the line is broken.
            lines += 1 + length.saturating_sub(1) / width;
            column = length % width;
        } else {
            column += 1 + length;
        }
    }
    u16::try_from(lines).unwrap_or(u16::MAX).min(most)
}

/// Connections by what they do, over all that there may be. Each state has a sign of its own, so that colour isn't needed.
fn saturation<'a>(pool: &PoolStatus, width: u16) -> Line<'a> {
    let looks = [
        ('█', Color::Blue),
        ('▒', Color::Yellow),
        ('▓', Color::Magenta),
        ('+', Color::Gray),
        ('-', Color::Green),
        ('·', Color::DarkGray),
    ];
    let states = words::states(pool).map(|(_, count)| count);
    let all: usize = states.iter().sum();
    let width = usize::from(width.saturating_sub(2));
    let mut spans = vec![Span::raw("[")];
    let mut seen = 0;
    for (count, (sign, color)) in states.into_iter().zip(looks) {
        // Ends are rounded, not widths: so they add up.
        let end = |count: usize| (count * width).checked_div(all).unwrap_or(0);
        let length = end(seen + count) - end(seen);
        spans.push(Span::raw(sign.to_string().repeat(length)).fg(color));
        seen += count;
    }
    spans.push(Span::raw("]"));
    Line::from(spans)
}

fn draw_charts(frame: &mut Frame<'_>, area: Rect, history: &[Sample], at_ms: u64) {
    if area.height < 2 {
        return;
    }
    let rows: [Rect; 2] = Layout::vertical([Constraint::Length(1); 2]).areas(area);
    let limit = history.iter().map(|sample| sample.limit.max(sample.in_use)).max().unwrap_or(1);
    let most = history.iter().map(|sample| sample.queue_max).max().unwrap_or(0);
    let labels = [format!("15 min /{limit}"), format!("waiting /{most}")];
    let counts: [fn(&Sample) -> usize; 2] = [|sample| sample.in_use, |sample| sample.queue_max];
    let tops = [limit.max(1), most.max(1)];
    for (((row, label), count), top) in rows.into_iter().zip(labels).zip(counts).zip(tops) {
        let columns = [Constraint::Length(LABEL_WIDTH), Constraint::Min(0)];
        let [left, right]: [Rect; 2] = Layout::horizontal(columns).areas(row);
        frame.render_widget(Line::from(label).dim(), left);
        let bars = bars(history, at_ms, right.width, count);
        let top = u64::try_from(top).unwrap_or(u64::MAX);
        frame.render_widget(Sparkline::default().data(bars).max(top), right);
    }
}

/// One bar for each column of the last quarter of an hour: the most in it, red if the pool was saturated then.
fn bars(
    history: &[Sample],
    at_ms: u64,
    width: u16,
    count: fn(&Sample) -> usize,
) -> Vec<SparklineBar> {
    let width = u64::from(width);
    let mut most: Vec<Option<(u64, bool)>> = vec![None; usize::try_from(width).unwrap_or(0)];
    for sample in history {
        let age = at_ms.saturating_sub(sample.at_ms).min(WINDOW_MS - 1);
        let column = (WINDOW_MS - 1 - age) * width / WINDOW_MS;
        let Some(bar) = usize::try_from(column).ok().and_then(|column| most.get_mut(column)) else {
            continue;
        };
        let (before, was_short) = bar.unwrap_or_default();
        let value = u64::try_from(count(sample)).unwrap_or(u64::MAX);
        *bar = Some((before.max(value), was_short || sample.saturated > 0.0));
    }
    // A column narrower than the time between two samples shows what the one before it shows.
    let mut last = None;
    most.into_iter()
        .map(|bar| {
            last = bar.or(last);
            let (value, is_short) = last.unwrap_or_default();
            let color = if is_short { Color::Red } else { Color::Blue };
            SparklineBar::from(value).style(Style::new().fg(color))
        })
        .collect()
}

/// Lanes and namespaces, a line each; what is left of the area.
fn draw_lanes(frame: &mut Frame<'_>, area: Rect, pool: &PoolStatus) -> Rect {
    let lanes = pool.lanes.iter().map(|lane| {
        format!(
            "{}: {} runs wait to be sent, {} bytes",
            lane.name, lane.batches, lane.pending_bytes
        )
    });
    let namespaces = pool.namespaces.iter().map(|space| {
        format!(
            "namespace {}: {} clients, {} commands, about {} keys, {} bytes",
            space.name, space.clients, space.commands, space.keys, space.memory_bytes
        )
    });
    let lines: Vec<Line<'_>> = lanes.chain(namespaces).map(Line::from).collect();
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let [above, below] =
        Layout::vertical([Constraint::Length(height), Constraint::Min(0)]).areas(area);
    frame.render_widget(Text::from(lines), above);
    below
}

/// Draws who holds connections, from the `scroll`th on; how far they are scrolled at most.
fn draw_holders(frame: &mut Frame<'_>, area: Rect, holders: &[Holder], scroll: usize) -> usize {
    let room = usize::from(area.height.saturating_sub(1));
    let scroll = scroll.min(holders.len().saturating_sub(room));
    if holders.is_empty() || area.height == 0 {
        return 0;
    }
    let with_address = area.width >= WIDTH_WITH_ADDRESS;
    let last = (scroll + room).min(holders.len());
    let title = format!("HELD BY {}-{last}/{}", scroll + 1, holders.len());
    let mut widths = vec![
        Constraint::Length(16),
        Constraint::Length(6),
        Constraint::Length(7),
        Constraint::Length(19),
        Constraint::Length(10),
        Constraint::Min(10),
    ];
    let mut heads = vec![title, "CLIENT".into(), "SERVER".into(), "PHASE".into(), "FOR".into()];
    heads.push("STATEMENT".to_owned());
    if with_address {
        widths.insert(2, Constraint::Length(22));
        heads.insert(2, "ADDRESS".to_owned());
    }
    let shown = &holders[scroll..last];
    let rows = shown.iter().map(|holder| row(holder, with_address));
    let table = Table::new(rows, widths).header(Row::new(heads).bold());
    frame.render_widget(table, area);
    scroll
}

fn row(holder: &Holder, with_address: bool) -> Row<'_> {
    let mut cells = vec![
        Cell::from(words::application(holder)),
        Cell::from(holder.client.to_string()),
        Cell::from(holder.server_pid.to_string()),
        Cell::from(words::phase(holder)),
        Cell::from(span(holder.phase_seconds)),
        Cell::from(holder.statement.as_str()),
    ];
    if with_address {
        cells.insert(2, Cell::from(holder.address.as_str()));
    }
    let style = if holder.leaks {
        Style::new().fg(Color::Yellow).add_modifier(Modifier::BOLD)
    } else {
        Style::new()
    };
    Row::new(cells).style(style)
}

/// The events that fit beside what is more urgent.
fn lately_height(events: &[&Event], height: u16) -> u16 {
    match (events.len(), height) {
        (0, _) | (_, 0..20) => 0,
        (_, 20..26) => 3,
        (_, 26..40) => 6,
        _ => 12,
    }
}

fn happened(events: &[&Event], at_ms: u64) -> String {
    let lines = events.iter().map(|event| {
        let ago = Duration::from_millis(at_ms.saturating_sub(event.at_ms)).as_secs_f64();
        let often = if event.count > 1 { format!(" ×{}", event.count) } else { String::new() };
        format!("{} ago {}{often}: {} {}", span(ago), event.kind, event.message, event.hint)
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
