//! Ratios of measurements that were made in turns.

/// Median, least and most, and how many `what` they come from.
#[must_use]
pub fn spread(mut ratios: Vec<f64>, what: &str) -> String {
    ratios.sort_by(f64::total_cmp);
    let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else { return String::new() };
    let middle = ratios.len() / 2;
    let median = if ratios.len() % 2 == 1 {
        ratios[middle]
    } else {
        f64::midpoint(ratios[middle - 1], ratios[middle])
    };
    format!("{median:.2} (least {least:.2}, most {most:.2}, {} {what})", ratios.len())
}
