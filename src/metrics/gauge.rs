//! Gauges that many parts add to: what a part added goes with it, however it ends.

use std::sync::LazyLock;

use metrics::Gauge;

/// One more of something, for as long as it exists.
#[derive(Debug)]
pub(crate) struct Counted(&'static LazyLock<Gauge>);

impl Counted {
    pub(crate) fn new(gauge: &'static LazyLock<Gauge>) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// What one part has of a sum.
pub(crate) struct Share {
    gauge: &'static LazyLock<Gauge>,
    now: f64,
}

impl Share {
    /// Nothing yet.
    pub(crate) fn new(gauge: &'static LazyLock<Gauge>) -> Self {
        Self { gauge, now: 0.0 }
    }

    pub(crate) fn set(&mut self, value: f64) {
        let change = value - self.now;
        if change != 0.0 {
            self.gauge.increment(change);
            self.now = value;
        }
    }
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share({})", self.now)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0.0);
    }
}
