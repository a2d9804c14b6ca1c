//! Positions as turns of pairs (Su et al., "`RoFormer`", 2021).

use std::f64::consts::TAU;

use crate::shape::{Pairs, Rope, Scaling};

/// `(cos, sin)` of each pair, position after position; `factors` divide the pairs' frequencies.
#[expect(clippy::cast_possible_truncation, reason = "computed in f64, used as f32")]
pub(super) fn turns(rope: &Rope, factors: Option<&[f32]>, context: usize) -> Vec<(f32, f32)> {
    let frequencies: Vec<f64> =
        (0..rope.dims / 2).map(|i| frequency(rope, factors.map(|f| f[i]), i)).collect();
    let scale = rope.turn_scale;
    let turn = |angle: f64| ((angle.cos() * scale) as f32, (angle.sin() * scale) as f32);
    (0..context).flat_map(|p| frequencies.iter().map(move |f| turn(p as f64 * f))).collect()
}

/// Of pair `i`: base^(−2i / dims), then stretched.
fn frequency(rope: &Rope, factor: Option<f32>, i: usize) -> f64 {
    let plain =
        rope.base.powf(-2.0 * i as f64 / rope.dims as f64) / f64::from(factor.unwrap_or(1.0));
    match rope.scaling {
        Scaling::None => plain,
        Scaling::Linear { factor } => plain / factor,
        Scaling::Yarn { factor, turns_fast, turns_slow } => {
            let original = rope.original_context.unwrap_or(1) as f64;
            // The pair, as a real number, that turns so often within the original context.
            let pair = |turns: f64| {
                rope.dims as f64 * (original / (turns * TAU)).ln() / (2.0 * rope.base.ln())
            };
            let low = pair(turns_fast).floor().max(0.0);
            let high = pair(turns_slow).ceil().min(rope.dims as f64 - 1.0);
            let stretched = ((i as f64 - low) / (high - low).max(1e-3)).clamp(0.0, 1.0);
            plain / factor * stretched + plain * (1.0 - stretched)
        }
    }
}

/// Rotates each head of `x` from `offset` on by the turns of one position; what is beyond them stays.
pub(super) fn rotate(
    x: &mut [f32],
    head_dim: usize,
    offset: usize,
    pairs: Pairs,
    turns: &[(f32, f32)],
) {
    for head in x.chunks_exact_mut(head_dim) {
        let part = &mut head[offset..];
        match pairs {
            Pairs::Neighbours => kernels::rope(part, head_dim - offset, turns),
            Pairs::Halves => {
                let (firsts, seconds) = part[..turns.len() * 2].split_at_mut(turns.len());
                for ((a, b), (cos, sin)) in firsts.iter_mut().zip(seconds).zip(turns) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(base: f64, dims: usize, scaling: Scaling) -> Rope {
        let original_context = Some(4096);
        Rope { pairs: Pairs::Halves, dims, base, scaling, original_context, turn_scale: 1.0 }
    }

    #[test]
    fn halves_turn_with_each_other_and_the_rest_stays() {
        let mut x = [9.0, 3.0, 7.0, 4.0, 8.0, 5.0];
        rotate(&mut x, 6, 1, Pairs::Halves, &[(0.0, 1.0), (1.0, 0.0)]);
        assert_eq!(x, [9.0, -4.0, 7.0, 3.0, 8.0, 5.0]);
        rotate(&mut x, 3, 1, Pairs::Neighbours, &[(0.0, 1.0)]);
        assert_eq!(x, [9.0, -7.0, -4.0, 3.0, -5.0, 8.0]);
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
        let yarn = Scaling::Yarn { factor: 40.0, turns_fast: 32.0, turns_slow: 1.0 };
        let (yarn, plain) = (rope(10_000.0, 64, yarn), rope(10_000.0, 64, Scaling::None));
        let ratio = |i| frequency(&plain, None, i) / frequency(&yarn, None, i);
        // DeepSeek-V2: pairs turn 32 times up to the 10th, less than once from the 23rd.
        assert!((0..=10).all(|i| (ratio(i) - 1.0).abs() < 1e-9), "{}", ratio(10));
        assert!((23..32).all(|i| (ratio(i) - 40.0).abs() < 1e-9), "{}", ratio(23));
        assert!((10..23).all(|i| ratio(i) < ratio(i + 1)));
    }

    #[test]
    fn factors_and_linear_scaling_divide() {
        let linear = rope(10_000.0, 8, Scaling::Linear { factor: 4.0 });
        let plain = rope(10_000.0, 8, Scaling::None);
        assert_eq!(frequency(&linear, Some(2.0), 3), frequency(&plain, None, 3) / 8.0);
    }
}
