//! Choosing a token. The same logits, parameters and seed give the same tokens, whatever else runs.
//!
//! What is done with a request's parameters, always in this order:
//!
//! 1. `logit_bias` is added to the logits of its tokens.
//! 2. `repetition_penalty`: the logit of each token of prompt or answer is divided by it if positive, else multiplied
//!    (Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019, section 4.1).
//! 3. `frequency_penalty` times the number of times that the answer has the token, and `presence_penalty` if it has it
//!    at all, are subtracted (OpenAI API reference, "Frequency and presence penalties").
//! 4. Tokens that the answer's format does not allow are out.
//! 5. With temperature 0, the largest logit wins; among equals the lowest token.
//! 6. Else a token weighs `exp((logit - largest) / temperature)`, in whole units of 2⁻⁴⁰: sums of whole numbers do not
//!    depend on their order. What weighs less than a unit is never drawn.
//! 7. Heaviest first, among equals the lowest token first: the first `top_k` are kept; of these, the fewest that have
//!    `top_p` of their weight; of these, those with at least `min_p` times the weight of the first.
//! 8. One is drawn by weight. The random number is a function of the seed and of the token's position in the answer.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

pub use ipc::Sampling;
use kernels::exp;

use crate::constraint::{Constraint, ConstraintError};

/// Weight of the likeliest token. Of 2²² tokens, the most that a vocabulary has, the sum fits 64 bits.
const WEIGHT_ONE: f64 = (1_u64 << 40) as f64;
/// Tokens that are put in order first; mostly the drawn one is among them.
const SORTED_FIRST: usize = 256;

/// Sampler of one request.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Tokens of prompt and answer, and how often the answer has them; empty if no penalty wants them.
    seen: BTreeMap<u32, u32>,
    /// Tokens chosen so far.
    position: u64,
    /// What the answer must be like.
    constraint: Option<Constraint>,
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

/// Why no token was chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The model's output is unusable.
    #[error("the model gave no finite logits; its weights are damaged or do not suit this engine")]
    NoFiniteLogits,
    /// The answer's format could not be kept to.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
}

/// Weight and token; the smallest is drawn first.
type Candidate = (Reverse<u64>, u32);

impl Sampler {
    /// A sampler at the start of the answer to `prompt`.
    #[must_use]
    pub fn new(sampling: Sampling, prompt: &[u32], constraint: Option<Constraint>) -> Self {
        let repeats = sampling.repetition_penalty != 1.0;
        let seen = prompt.iter().filter(|_| repeats).map(|token| (*token, 0)).collect();
        Self { sampling, seen, position: 0, constraint }
    }

    /// Chooses the answer's next token.
    ///
    /// # Errors
    /// If any logit is NaN, or none is finite, or the answer's format takes too much work.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32, SampleError> {
        let mut logits = self.adjust(logits);
        if let Some(constraint) = &mut self.constraint {
            // What is unusable must not be hidden by the mask.
            greedy(&logits)?;
            constraint.mask(logits.to_mut())?;
        }
        let (best, largest) = greedy(&logits)?;
        let token =
            if self.sampling.temperature == 0.0 { best } else { self.draw(&logits, largest) };
        self.position += 1;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(token)?;
        }
        if self.penalizes() {
            *self.seen.entry(token).or_default() += 1;
        }
        Ok(token)
    }

    fn penalizes(&self) -> bool {
        let Sampling { presence_penalty, frequency_penalty, repetition_penalty, .. } =
            self.sampling;
        (presence_penalty, frequency_penalty, repetition_penalty) != (0.0, 0.0, 1.0)
    }

    /// Steps 1 to 3.
    fn adjust<'l>(&self, logits: &'l [f32]) -> Cow<'l, [f32]> {
        let sampling = &self.sampling;
        if sampling.logit_bias.is_empty() && self.seen.is_empty() {
            return Cow::Borrowed(logits);
        }
        let mut logits = logits.to_vec();
        for (token, bias) in &sampling.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for (token, count) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            let repetition = sampling.repetition_penalty;
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            *logit -= sampling.frequency_penalty * *count as f32;
            if *count > 0 {
                *logit -= sampling.presence_penalty;
            }
        }
        Cow::Owned(logits)
    }

    /// Steps 6 to 8.
    fn draw(&self, logits: &[f32], largest: f32) -> u32 {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let weigh = |logit: f32| weight(f64::from(exp((logit - largest) / temperature)));
        let weighed = (0..).zip(logits).map(|(token, logit)| (Reverse(weigh(*logit)), token));
        let mut candidates: Vec<Candidate> = weighed.filter(|c| c.0.0 > 0).collect();
        let top_k = top_k as usize;
        if (1..candidates.len()).contains(&top_k) {
            candidates.select_nth_unstable(top_k - 1);
            candidates.truncate(top_k);
        }
        let mut total: u64 = candidates.iter().map(|c| c.0.0).sum();
        let mut candidates = Descending { candidates, sorted: 0 };
        if top_p < 1.0 || min_p > 0.0 {
            total = candidates.keep(total as f64 * f64::from(top_p), weight(f64::from(min_p)));
        }
        // A whole number below `total`.
        let random = u128::from(random(self.sampling.seed, self.position)) * u128::from(total);
        candidates.find(u64::try_from(random >> 64).unwrap_or(0))
    }
}

/// A share of [`WEIGHT_ONE`] in whole units.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in [0, 2⁴⁰]")]
fn weight(share: f64) -> u64 {
    (share * WEIGHT_ONE).round() as u64
}

/// Candidates in order, of which only as many are sorted as are looked at.
struct Descending {
    candidates: Vec<Candidate>,
    sorted: usize,
}

impl Descending {
    fn get(&mut self, at: usize) -> Option<Candidate> {
        while at >= self.sorted && self.sorted < self.candidates.len() {
            let rest = &mut self.candidates[self.sorted..];
            let more = self.sorted.max(SORTED_FIRST).min(rest.len());
            if more < rest.len() {
                rest.select_nth_unstable(more);
            }
            rest[..more].sort_unstable();
            self.sorted += more;
        }
        self.candidates.get(at).copied()
    }

    /// Keeps the fewest that weigh `mass` together, and of these the ones that weigh at least `weight_min` each, but
    /// always the first; returns their weight.
    fn keep(&mut self, mass: f64, weight_min: u64) -> u64 {
        let (mut kept, mut sum) = (0, 0);
        while let Some((Reverse(weight), _)) = self.get(kept) {
            if kept > 0 && (sum as f64 >= mass || weight < weight_min) {
                break;
            }
            sum += weight;
            kept += 1;
        }
        self.candidates.truncate(kept);
        self.sorted = self.sorted.min(kept);
        sum
    }

    /// The one that `left` falls on, when all lie side by side.
    fn find(&mut self, mut left: u64) -> u32 {
        let mut at = 0;
        while let Some((Reverse(weight), token)) = self.get(at) {
            if left < weight {
                return token;
            }
            left -= weight;
            at += 1;
        }
        // Not reached: `left` is below their sum.
        self.candidates.first().map_or(0, |c| c.1)
    }
}

/// Number `position` of the sequence of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014) that begins with `seed`.
fn random(seed: u64, position: u64) -> u64 {
    let z = seed.wrapping_add(position.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
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
fn greedy(logits: &[f32]) -> Result<(u32, f32), SampleError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0..).zip(logits) {
        if logit.is_nan() {
            return Err(SampleError::NoFiniteLogits);
        }
        if logit > best.1 {
            best = (token, logit);
        }
    }
    if best.1.is_finite() { Ok(best) } else { Err(SampleError::NoFiniteLogits) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32, seed: u64) -> Sampler {
        Sampler::new(Sampling { temperature, top_p, seed, ..Sampling::default() }, &[], None)
    }

    /// Tokens that are drawn from `logits` with the parameters at the same position of many answers.
    fn kinds(logits: &[f32], sampling: &Sampling) -> Vec<u32> {
        let draw = |seed| {
            let sampling = Sampling { seed, ..sampling.clone() };
            Sampler::new(sampling, &[], None).sample(logits).unwrap()
        };
        let mut drawn: Vec<u32> = (0..2000).map(draw).collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        assert_eq!(sampler(0.0, 1.0, 0).sample(&[0.0, 3.0, -1.0, 3.0]), Ok(1));
    }

    #[test]
    fn unusable_logits_are_an_error() {
        for logits in [vec![1.0, f32::NAN], vec![f32::NEG_INFINITY; 3], vec![f32::INFINITY], vec![]]
        {
            assert_eq!(
                sampler(0.0, 1.0, 0).sample(&logits),
                Err(SampleError::NoFiniteLogits),
                "{logits:?}"
            );
            assert_eq!(
                sampler(1.0, 1.0, 0).sample(&logits),
                Err(SampleError::NoFiniteLogits),
                "{logits:?}"
            );
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
    fn what_is_drawn_depends_on_seed_and_position_alone() {
        let logits: Vec<f32> = (0..1000_u16).map(|i| f32::from(i % 97) / 20.0).collect();
        let mut through = sampler(0.8, 0.9, 3);
        let all: Vec<u32> = (0..50).map(|_| through.sample(&logits).unwrap()).collect();
        for (position, token) in (0..).zip(&all) {
            let mut there = Sampler { position, ..sampler(0.8, 0.9, 3) };
            assert_eq!(there.sample(&logits), Ok(*token));
        }
        // The very numbers, so that a change of the rule does not go unnoticed.
        assert_eq!(random(0, 0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(all[..6], [774, 857, 860, 95, 481, 568]);
    }

    /// A rule as simple as the module's text, beside the one that avoids sorting.
    fn plain_rule(logits: &[f32], sampling: &Sampling) -> u32 {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weigh = |l: &f32| weight(f64::from(exp((l - largest) / sampling.temperature)));
        let mut all: Vec<(u64, u32)> = logits.iter().map(weigh).zip(0..).collect();
        all.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        if sampling.top_k > 0 {
            all.truncate(sampling.top_k as usize);
        }
        let total: u64 = all.iter().map(|c| c.0).sum();
        let mass = total as f64 * f64::from(sampling.top_p);
        let mut before = 0;
        let least = weight(f64::from(sampling.min_p));
        let mut kept = Vec::new();
        for (weight, token) in all {
            let wanted = sampling.top_p >= 1.0 || (before as f64) < mass;
            if kept.is_empty() || (wanted && weight >= least) {
                kept.push((weight, token));
            }
            before += weight;
        }
        let total: u64 = kept.iter().map(|c| c.0).sum();
        let left = (u128::from(random(sampling.seed, 0)) * u128::from(total)) >> 64;
        let mut left = u64::try_from(left).unwrap();
        for (weight, token) in kept {
            if left < weight {
                return token;
            }
            left -= weight;
        }
        panic!("nothing was drawn");
    }

    #[test]
    fn sorting_lazily_changes_nothing() {
        for seed in 0..600_u64 {
            let count = 1 + random(seed, 1) % 2000;
            let logit = |i| (random(seed, i + 2) % 4096) as f32 / 300.0;
            let logits: Vec<f32> = (0..count).map(logit).collect();
            let below = |n: u64, count| usize::try_from(random(seed, 9000 + n) % count).unwrap();
            let pick = |n, of: &[f32]| of[below(n, of.len() as u64)];
            let sampling = Sampling {
                temperature: pick(0, &[0.3, 1.0, 2.0]),
                top_k: [0, 1, 5, 300, 5000][below(1, 5)],
                top_p: pick(2, &[1.0, 0.95, 0.5]),
                min_p: pick(3, &[0.0, 0.01, 0.3]),
                seed,
                ..Sampling::default()
            };
            let found = Sampler::new(sampling.clone(), &[], None).sample(&logits).unwrap();
            assert_eq!(found, plain_rule(&logits, &sampling), "{sampling:?}");
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        // Probabilities 0.665, 0.245, 0.090.
        let kept = |top_p| kinds(&[0.0, 1.0, 2.0], &Sampling { top_p, ..Sampling::default() });
        assert_eq!(kept(0.6), [2]);
        assert_eq!(kept(0.7), [1, 2]);
        assert_eq!(kept(0.95), [0, 1, 2]);
        assert_eq!(kept(f32::MIN_POSITIVE), [2]);
    }

    #[test]
    fn top_k_keeps_so_many_and_the_lowest_among_equals() {
        let kept = |top_k| kinds(&[1.0, 2.0, 1.0, 2.0], &Sampling { top_k, ..Sampling::default() });
        assert_eq!(kept(1), [1]);
        assert_eq!(kept(3), [0, 1, 3]);
        assert_eq!(kept(0), [0, 1, 2, 3]);
        assert_eq!(kept(u32::MAX), [0, 1, 2, 3]);
    }

    #[test]
    fn min_p_keeps_what_is_likely_beside_the_likeliest() {
        // Shares of the likeliest: 0.135, 0.368, 1.
        let kept = |min_p| kinds(&[0.0, 1.0, 2.0], &Sampling { min_p, ..Sampling::default() });
        assert_eq!(kept(0.13), [0, 1, 2]);
        assert_eq!(kept(0.3), [1, 2]);
        assert_eq!(kept(1.0), [2]);
    }

    #[test]
    fn top_p_counts_what_top_k_left() {
        // Of the two likeliest, the first has 0.731.
        let kept =
            |top_p| kinds(&[0.0, 1.0, 2.0], &Sampling { top_p, top_k: 2, ..Sampling::default() });
        assert_eq!(kept(0.7), [2]);
        assert_eq!(kept(0.75), [1, 2]);
    }

    #[test]
    fn bias_moves_a_token_and_ignores_what_is_none() {
        let logit_bias = BTreeMap::from([(0, 5.5), (2, -100.0), (77, 100.0)]);
        let mut sampler = Sampler::new(Sampling { logit_bias, ..Sampling::greedy() }, &[], None);
        assert_eq!(sampler.sample(&[0.0, 5.0, 9.0]), Ok(0));
    }

    #[test]
    fn presence_counts_once_and_frequency_each_time() {
        let said = |presence_penalty, frequency_penalty| {
            let sampling = Sampling { presence_penalty, frequency_penalty, ..Sampling::greedy() };
            // What the prompt has does not count.
            let mut sampler = Sampler::new(sampling, &[0, 0, 0], None);
            (0..4).map(|_| sampler.sample(&[1.0, 0.4, 0.0]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(said(0.0, 0.0), [0, 0, 0, 0]);
        assert_eq!(said(0.5, 0.0), [0, 0, 0, 0], "0.5 is still the most");
        assert_eq!(said(0.7, 0.0), [0, 1, 0, 0]);
        assert_eq!(said(0.0, 0.7), [0, 1, 0, 2]);
        assert_eq!(said(-2.0, -2.0), [0, 0, 0, 0]);
    }

    #[test]
    fn repetition_counts_the_prompt_and_turns_both_signs_down() {
        let first = |repetition_penalty, prompt: &[u32], logits: &[f32]| {
            let sampling = Sampling { repetition_penalty, ..Sampling::greedy() };
            Sampler::new(sampling, prompt, None).sample(logits).unwrap()
        };
        assert_eq!(first(1.0, &[0], &[1.0, 0.6]), 0);
        assert_eq!(first(2.0, &[0], &[1.0, 0.6]), 1);
        assert_eq!(first(2.0, &[0], &[-1.0, -1.5]), 1);
        assert_eq!(first(2.0, &[99], &[1.0, 0.6]), 0);
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut sampler = Sampler::new(sampling, &[], None);
        let said: Vec<u32> = (0..3).map(|_| sampler.sample(&[1.0, 0.6]).unwrap()).collect();
        assert_eq!(said, [0, 1, 0], "once said, often said: 0.5 beside 0.3");
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
