//! What is done to each number of a row. One implementation, plain Rust that the compiler vectorises for each
//! instruction set: it fuses and reorders nothing, so that one order of operations is one result.

use crate::simd::{LANES, reduce};

/// Defines a function that runs with the widest vectors of this CPU.
macro_rules! widest {
    ($(#[$meta:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $visibility fn $name($($arg: $type),*) {
            #[inline(always)]
            fn body($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,f16c,fma,avx512f,avx512bw,avx512vl")]
                fn avx512($($arg: $type),*) {
                    body($($arg),*);
                }
                #[target_feature(enable = "avx2,f16c,fma")]
                fn avx2($($arg: $type),*) {
                    body($($arg),*);
                }
                if $crate::Avx512::detect().is_some() {
                    // SAFETY: the proof exists, so the CPU has the features.
                    return unsafe { avx512($($arg),*) };
                }
                if $crate::Avx2::detect().is_some() {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*);
        }
    };
}
pub(crate) use widest;

widest! {
    /// `out = x / sqrt(mean(x²) + epsilon) · weight` (Zhang & Sennrich, "Root Mean Square Layer
    /// Normalization", 2019).
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len(), "rows of different lengths");
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += x * x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += x * x;
        }
        let mean = reduce(lanes) / x.len() as f32;
        let scale = 1.0 / (mean + epsilon).sqrt();
        for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * weight;
        }
    }
}

widest! {
    /// `x = (x - mean(x)) / sqrt(variance(x) + epsilon) · weight + bias` (Ba, Kiros & Hinton, "Layer Normalization",
    /// 2016).
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
        assert!(x.len() == weight.len() && x.len() == bias.len(), "rows of different lengths");
        let mut lanes = [0.0; LANES];
        for chunk in x.chunks(LANES) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += x;
            }
        }
        let mean = reduce(lanes) / x.len() as f32;
        let mut lanes = [0.0; LANES];
        for chunk in x.chunks(LANES) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                let away = x - mean;
                *lane += away * away;
            }
        }
        let scale = 1.0 / (reduce(lanes) / x.len() as f32 + epsilon).sqrt();
        for ((x, weight), bias) in x.iter_mut().zip(weight).zip(bias) {
            *x = (*x - mean) * scale * weight + bias;
        }
    }
}

widest! {
    /// Rotates neighbouring pairs of each head; `turns` holds `(cos, sin)` of each pair at this position.
    /// GGUF permutes `llama` weights so that pairs are neighbours (llama.cpp, `LLAMA_ROPE_TYPE_NORM`).
    /// Elements beyond `2 · turns.len()` of a head stay as they are.
    pub fn rope(x: &mut [f32], head_dim: usize, turns: &[(f32, f32)]) {
        for head in x.chunks_exact_mut(head_dim) {
            for (pair, (cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(turns) {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, a * sin + b * cos];
            }
        }
    }
}

widest! {
    /// `gate = silu(gate) · up` (Shazeer, "GLU Variants Improve Transformer", 2020).
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn swiglu(gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "rows of different lengths");
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + exp_here(-*gate)) * up;
        }
    }
}

widest! {
    /// `x = x · Φ(x)`, Φ the normal distribution's function (Hendrycks & Gimpel, "Gaussian Error Linear Units", 2016),
    /// to within 5e-7 · max(1, |x|): not the approximation by tanh, which is off by 5e-4.
    pub fn gelu(x: &mut [f32]) {
        for x in x {
            *x = *x * 0.5 * (1.0 + erf_here(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

/// The error function (Abramowitz & Stegun, "Handbook of Mathematical Functions", 7.1.26), to within 5e-7.
#[inline(always)]
fn erf_here(x: f32) -> f32 {
    let (above, magnitude) = (x > 0.0, x.abs());
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let mut p = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_73, 0.254_829_6] {
        p = p * t + c;
    }
    let found = 1.0 - p * t * exp_here(-magnitude * magnitude);
    if above { found } else { -found }
}

widest! {
    /// `x += y`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add(x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "rows of different lengths");
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

widest! {
    /// Replaces scores by their softmax; a NaN makes all NaN.
    pub fn softmax(scores: &mut [f32]) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = scores.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, score) in lanes.iter_mut().zip(chunk) {
                *lane = if *score > *lane { *score } else { *lane };
            }
        }
        let both = rest.iter().chain(&lanes);
        let largest = both.fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
        for score in scores.iter_mut() {
            *score = exp_here(*score - largest);
        }
        let mut lanes = [0.0; LANES];
        let (chunks, rest) = scores.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, score) in lanes.iter_mut().zip(chunk) {
                *lane += score;
            }
        }
        for (lane, score) in lanes.iter_mut().zip(rest) {
            *lane += score;
        }
        let sum = reduce(lanes);
        for score in scores.iter_mut() {
            *score /= sum;
        }
    }
}

/// `eˣ` within 2 units in the last place, from additions and multiplications alone, so that it is the
/// same on every machine (a C library's is not). Below −87.3 it is 0; above 88.7 infinite.
#[must_use]
pub fn exp(x: f32) -> f32 {
    exp_here(x)
}

/// Without branches, so that it is vectorised: what is out of range is computed too, and replaced.
#[inline(always)]
fn exp_here(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding 1.5 · 2²³ rounds to an integer, and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // Minimax on ±ln(2)/2 (Cephes, expf).
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let value = p * (r * r) + r + 1.0;
    // 2ⁿ in two factors: n = 128 has no exponent of its own.
    let n = rounded.to_bits().cast_signed().wrapping_sub(ROUND.to_bits().cast_signed());
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(n.wrapping_add(127).cast_unsigned() << 23);
    let value = value * power(half) * power(n.wrapping_sub(half));
    let value = if x > 88.722_83 { f32::INFINITY } else { value };
    if x < -87.336_54 { 0.0 } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -87.3_f32;
        while x < 88.7 {
            let (found, truth) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(((found - truth) / truth).abs() < 2.4e-7, "{x}: {found} {truth}");
            x += 0.013;
        }
        assert_eq!((exp(0.0), exp(-1e9), exp(1e9)), (1.0, 0.0, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn gelu_follows_the_error_function_and_shows_a_nan() {
        // Its Taylor series, which doubles can sum up to here.
        let erf = |x: f64| {
            let (mut term, mut sum) = (x, x);
            for n in 1..120 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        let mut x = -5.5_f32;
        while x < 5.5 {
            let truth = f64::from(x) * 0.5 * (1.0 + erf(f64::from(x) * 0.5_f64.sqrt()));
            let mut found = [x];
            gelu(&mut found);
            let error = (f64::from(found[0]) - truth).abs();
            assert!(error < 5e-7 * f64::from(x.abs().max(1.0)), "{x}: {} {truth}", found[0]);
            x += 0.0037;
        }
        let mut ends = [-1e9, 0.0, 1e9, f32::NAN];
        gelu(&mut ends);
        assert_eq!(ends[..3], [0.0, 0.0, 1e9]);
        assert!(ends[3].is_nan());
    }

    #[test]
    fn vectors_of_any_width_have_the_same_bits() {
        // `widest!` chooses by the CPU; a row shorter than a vector goes the scalar way.
        let values: Vec<f32> = (0..67_u8).map(|i| f32::from(i) * 0.37 - 12.0).collect();
        let mut whole = values.clone();
        gelu(&mut whole);
        let single = values.iter().map(|x| {
            let mut one = [*x];
            gelu(&mut one);
            one[0].to_bits()
        });
        assert!(whole.iter().map(|x| x.to_bits()).eq(single));
    }

    #[test]
    fn softmax_sums_to_one_and_shows_a_nan() {
        let mut scores = [1000.0, 999.0, -1000.0, f32::NEG_INFINITY];
        softmax(&mut scores);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((scores[0] / scores[1] - std::f32::consts::E).abs() < 1e-5);
        let mut scores = [1.0, f32::NAN];
        softmax(&mut scores);
        assert!(scores.iter().all(|s| s.is_nan()));
    }

    #[test]
    fn rope_keeps_lengths_and_turns_by_the_angle() {
        let mut x = [3.0, 4.0, 7.0, 8.0];
        rope(&mut x, 4, &[(0.0, 1.0)]);
        assert_eq!(x, [-4.0, 3.0, 7.0, 8.0]);
    }

    #[test]
    fn norm_and_gate_follow_their_definitions() {
        let mut out = [0.0; 2];
        rms_norm(&[3.0, 4.0], &[1.0, 2.0], 0.0, &mut out);
        let root = 12.5_f32.sqrt();
        assert!((out[0] - 3.0 / root).abs() < 1e-6 && (out[1] - 8.0 / root).abs() < 1e-6);
        let mut x = [1.0, 2.0, 6.0];
        layer_norm(&mut x, &[1.0, 1.0, 3.0], &[0.0, 0.5, 0.0], 0.0);
        let deviation = (14.0_f32 / 3.0).sqrt();
        for (x, truth) in x.iter().zip([-2.0 / deviation, 0.5 - 1.0 / deviation, 9.0 / deviation]) {
            assert!((x - truth).abs() < 1e-6, "{x} {truth}");
        }
        let mut gate = [1.0];
        swiglu(&mut gate, &[2.0]);
        assert!((gate[0] - 2.0 / (1.0 + (-1f32).exp())).abs() < 1e-6);
    }
}
