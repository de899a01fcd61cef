//! Measuring two sides in turn, and the table.

use std::time::Instant;

/// One line of the table.
pub(crate) struct Measurement {
    pub(crate) name: &'static str,
    /// The side that the target is about.
    pub(crate) measured: String,
    /// What it is compared with; empty where the target is absolute.
    pub(crate) against: String,
    /// What is held against the target.
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    pub(crate) target: Target,
}

#[derive(Clone, Copy)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Measured to understand another measurement.
    None,
}

/// The medians of two sides, and of the ratios of neighbours.
pub(crate) struct Sides {
    pub(crate) first: f64,
    pub(crate) second: f64,
    /// First by second.
    pub(crate) ratio: f64,
    /// The least and the most of each side.
    pub(crate) ranges: [(f64, f64); 2],
}

/// Measures both sides `rounds` times, in turn, each being first in every other round. One more
/// round at the beginning warms up and does not count.
pub(crate) fn in_turn(
    rounds: usize,
    mut first: impl FnMut() -> f64,
    mut second: impl FnMut() -> f64,
) -> Sides {
    let (mut firsts, mut seconds, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=rounds {
        let (one, other) = if round % 2 == 0 {
            let one = first();
            (one, second())
        } else {
            let other = second();
            (first(), other)
        };
        if round > 0 {
            firsts.push(one);
            seconds.push(other);
            ratios.push(one / other);
        }
    }
    Sides {
        ranges: [range(&firsts), range(&seconds)],
        first: median(firsts),
        second: median(seconds),
        ratio: median(ratios),
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    (least, values.iter().copied().fold(0.0, f64::max))
}

/// A median and its range as people read it.
pub(crate) fn with_range(median: f64, (least, most): (f64, f64)) -> String {
    format!("{} ({} to {})", time(median), time(least), time(most))
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

/// Seconds that `work` took.
pub(crate) fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

/// A time as people read it.
pub(crate) fn time(seconds: f64) -> String {
    if seconds < 1e-3 {
        format!("{:.1} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.2} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

/// Figures as an aligned table.
pub(crate) fn table(part: &str, measurements: &[Measurement]) -> String {
    let mut rows = vec![[part, "measured", "against", "result", "target", ""].map(str::to_owned)];
    rows.extend(measurements.iter().map(Measurement::row));
    let mut widths = [0; COLUMNS];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
            if index == 0 || index == COLUMNS - 1 {
                line.push_str(&format!("{cell:<width$}   "));
            } else {
                line.push_str(&format!("{cell:>width$}   "));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

impl Measurement {
    fn row(&self) -> [String; COLUMNS] {
        let number = |value: f64| format!("{value:.2} {}", self.unit);
        let (target, verdict) = match self.target {
            Target::AtMost(bound) => (format!("≤ {}", number(bound)), self.value <= bound),
            Target::AtLeast(bound) => (format!("≥ {}", number(bound)), self.value >= bound),
            Target::None => ("-".to_owned(), true),
        };
        let verdict = match (self.target, verdict) {
            (Target::None, _) => "",
            (_, true) => "ok",
            (_, false) => "MISSED",
        };
        [
            self.name.to_owned(),
            self.measured.clone(),
            self.against.clone(),
            number(self.value),
            target,
            verdict.to_owned(),
        ]
    }
}

const COLUMNS: usize = 6;
