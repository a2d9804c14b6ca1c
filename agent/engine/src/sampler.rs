//! Choosing a token. The same logits, parameters and seed give the same tokens, whatever else runs.

use kernels::exp;

/// Parameters of one request, checked.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus sampling mass in (0, 1].
    pub top_p: f32,
    /// Seed.
    pub seed: u64,
}

/// Sampler of one request.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    state: u64,
}

/// What the model said of a token, before any parameter of the request.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Natural logarithm of its probability, at least [`LOGPROB_MIN`].
    pub logprob: f32,
    /// The likeliest tokens and theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Stands for a probability of zero, as in OpenAI's API; JSON has no infinity.
pub const LOGPROB_MIN: f32 = -9999.0;

/// The model's output is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model gave no finite logits; its weights are damaged or do not suit this engine")]
pub struct NoFiniteLogits;

impl Sampler {
    /// A sampler at the start of its random sequence.
    #[must_use]
    pub fn new(sampling: Sampling) -> Self {
        Self { sampling, state: sampling.seed }
    }

    /// Chooses a token; among equals the lowest number.
    ///
    /// # Errors
    /// If any logit is NaN, or none is finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, NoFiniteLogits> {
        let best = greedy(logits)?;
        if self.sampling.temperature == 0.0 {
            return Ok(best.0);
        }
        Ok(self.draw(logits, best.1))
    }

    /// Draws from the smallest set of most likely tokens whose probabilities reach `top_p`.
    fn draw(&mut self, logits: &[f32], largest: f32) -> u32 {
        let weigh = |logit: f32| exp((logit - largest) / self.sampling.temperature);
        let mut candidates: Vec<(u32, f32)> =
            (0..).zip(logits.iter().map(|logit| weigh(*logit))).filter(|c| c.1 > 0.0).collect();
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: f64 = candidates.iter().map(|c| f64::from(c.1)).sum();
        let mass = total * f64::from(self.sampling.top_p);
        let mut sum = 0.0;
        let mut kept = 0;
        for candidate in &candidates {
            sum += f64::from(candidate.1);
            kept += 1;
            if sum >= mass {
                break;
            }
        }
        let mut left = self.uniform() * sum;
        for candidate in &candidates[..kept] {
            left -= f64::from(candidate.1);
            if left < 0.0 {
                return candidate.0;
            }
        }
        candidates[kept - 1].0
    }

    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014), its upper
    /// 53 bits as a number in [0, 1).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl Logprobs {
    /// Those of `token` and of the `top` likeliest ones under finite `logits`.
    #[must_use]
    pub fn of(logits: &[f32], token: u32, top: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f64 = logits.iter().map(|logit| f64::from(exp(logit - largest))).sum();
        let total = f64::from(largest) + total.ln();
        #[expect(clippy::cast_possible_truncation, reason = "computed in f64, told as f32")]
        let log = |logit: f32| ((f64::from(logit) - total) as f32).max(LOGPROB_MIN);
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
        for (token, &logit) in (0..).zip(logits) {
            if best.len() < top || best.last().is_some_and(|last| logit > last.1) {
                let at = best.partition_point(|other| other.1 >= logit);
                best.insert(at, (token, logit));
                best.truncate(top);
            }
        }
        Self {
            logprob: logits.get(token as usize).copied().map_or(LOGPROB_MIN, log),
            top: best.into_iter().map(|(token, logit)| (token, log(logit))).collect(),
        }
    }
}

/// The first of the largest logits.
fn greedy(logits: &[f32]) -> Result<(u32, f32), NoFiniteLogits> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0..).zip(logits) {
        if logit.is_nan() {
            return Err(NoFiniteLogits);
        }
        if logit > best.1 {
            best = (token, logit);
        }
    }
    if best.1.is_finite() { Ok(best) } else { Err(NoFiniteLogits) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, top_p, seed })
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(sampler(0.0, 1.0, 0).sample(&[0.0, 3.0, -1.0, 3.0]), Ok(1));
    }

    #[test]
    fn unusable_logits_are_an_error() {
        for logits in [vec![1.0, f32::NAN], vec![f32::NEG_INFINITY; 3], vec![f32::INFINITY], vec![]]
        {
            assert_eq!(sampler(0.0, 1.0, 0).sample(&logits), Err(NoFiniteLogits), "{logits:?}");
            assert_eq!(sampler(1.0, 1.0, 0).sample(&logits), Err(NoFiniteLogits), "{logits:?}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_and_frequencies_follow_the_softmax() {
        let logits = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
        let draw = |seed| {
            let mut sampler = sampler(1.0, 1.0, seed);
            (0..6000).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
        };
        let drawn = draw(5);
        assert_eq!(drawn, draw(5));
        assert_ne!(drawn, draw(6));
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (token, logit) in (0..).zip(logits) {
            let found = drawn.iter().filter(|t| **t == token).count() as f64 / 6000.0;
            assert!((found - f64::from(logit).exp() / total).abs() < 0.03, "{token}: {found}");
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        // Probabilities 0.665, 0.245, 0.090.
        let logits = [0.0, 1.0, 2.0];
        let kinds = |top_p| {
            let mut sampler = sampler(1.0, top_p, 1);
            let mut drawn: Vec<u32> = (0..2000).map(|_| sampler.sample(&logits).unwrap()).collect();
            drawn.sort_unstable();
            drawn.dedup();
            drawn
        };
        assert_eq!(kinds(0.6), [2]);
        assert_eq!(kinds(0.7), [1, 2]);
        assert_eq!(kinds(0.95), [0, 1, 2]);
        assert_eq!(kinds(f32::MIN_POSITIVE), [2]);
    }

    #[test]
    fn logprobs_are_of_the_whole_distribution() {
        let logits = [1.0, 3.0, f32::NEG_INFINITY, 3.0, 2.0];
        let total = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
        let found = Logprobs::of(&logits, 4, 3);
        assert!((f64::from(found.logprob) - (2.0 - total)).abs() < 1e-6, "{found:?}");
        assert_eq!(found.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(found.top[2].1.to_bits(), found.logprob.to_bits());
        let never = Logprobs::of(&logits, 2, 0);
        assert_eq!((never.logprob, never.top.len()), (LOGPROB_MIN, 0));
        assert_eq!(Logprobs::of(&logits, 99, 9).top.len(), 5);
    }

    #[test]
    fn a_tiny_temperature_is_nearly_greedy_and_harmless() {
        assert_eq!(sampler(1e-30, 1.0, 3).sample(&[1.0, 2.0, 1.5]), Ok(1));
    }
}
