//! The named steps of a build and their times, printed as they go.

use std::time::{Duration, Instant};

/// What a step cost.
#[derive(Clone, Debug)]
pub struct StepTime {
    /// What was done.
    pub name: &'static str,
    /// How long it took.
    pub duration: Duration,
    /// The result came from the cache.
    pub cached: bool,
}

/// The steps so far.
#[derive(Debug, Default)]
pub struct Steps {
    times: Vec<StepTime>,
}

/// A step's result, and whether the cache had it.
#[derive(Debug)]
pub(crate) struct Done<T> {
    pub(crate) value: T,
    pub(crate) cached: bool,
}

impl<T> Done<T> {
    pub(crate) fn fresh(value: T) -> Self {
        Self { value, cached: false }
    }
}

impl Steps {
    /// Runs one step and records its time, whatever its result.
    pub(crate) fn step<T, E>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<Done<T>, E>,
    ) -> Result<T, E> {
        eprintln!("build: {name} …");
        let started = Instant::now();
        let result = work();
        let cached = matches!(&result, Ok(done) if done.cached);
        self.times.push(StepTime { name, duration: started.elapsed(), cached });
        result.map(|done| done.value)
    }

    /// The steps in order.
    #[must_use]
    pub fn times(&self) -> &[StepTime] {
        &self.times
    }

    /// The steps as a table, one line each, and their sum.
    #[must_use]
    pub fn table(&self) -> String {
        let mut lines: Vec<String> = self
            .times
            .iter()
            .map(|step| {
                let note = if step.cached { "  (cache)" } else { "" };
                format!("  {:<28}{:>7.1} s{note}", step.name, step.duration.as_secs_f64())
            })
            .collect();
        let sum: Duration = self.times.iter().map(|step| step.duration).sum();
        lines.push(format!("  {:<28}{:>7.1} s", "sum", sum.as_secs_f64()));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_recorded_in_order_and_failures_too() {
        let mut steps = Steps::default();
        steps.step("first", || Ok::<_, ()>(Done { value: 1, cached: true })).unwrap();
        steps.step("second", || Err::<Done<()>, _>(())).unwrap_err();
        let seen: Vec<_> = steps.times().iter().map(|step| (step.name, step.cached)).collect();
        assert_eq!(seen, [("first", true), ("second", false)]);
        assert!(steps.table().contains("(cache)"));
    }
}
