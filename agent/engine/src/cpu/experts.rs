//! Which experts a token is sent to, and with which weight.

use kernels::{exp, softmax};

use crate::shape::{Experts, Gating};

/// A token, by its row in the step, that is sent to an expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Route {
    pub(super) expert: usize,
    pub(super) row: usize,
    pub(super) weight: f32,
}

/// Adds the routes of `row`, whose router `logits` become scores; experts ascend. Of equally good ones the first
/// is taken.
pub(super) fn choose(
    shape: &Experts,
    bias: Option<&[f32]>,
    row: usize,
    logits: &mut [f32],
    routes: &mut Vec<Route>,
) {
    let scores = logits;
    match shape.gating {
        Gating::Softmax => softmax(scores),
        Gating::Sigmoid => scores.iter_mut().for_each(|s| *s = 1.0 / (1.0 + exp(-*s))),
    }
    let goods: Vec<f32> = match bias {
        Some(bias) => scores.iter().zip(bias).map(|(score, bias)| score + bias).collect(),
        None => scores.to_vec(),
    };
    let group = shape.count / shape.groups;
    let of_groups: Vec<f32> = goods.chunks_exact(group).map(|g| good(shape.gating, g)).collect();
    let groups = best((0..shape.groups).collect(), &of_groups, shape.groups_used);
    let candidates = groups.iter().flat_map(|g| g * group..(g + 1) * group).collect();
    let chosen = best(candidates, &goods, shape.used);
    let sum: f32 = chosen.iter().map(|expert| scores[*expert]).sum();
    // DeepSeek's own code has the addend.
    let divisor = if shape.normalised { sum + 1e-20 } else { 1.0 };
    routes.extend(chosen.into_iter().map(|expert| {
        let weight = scores[expert] / divisor * shape.scale;
        Route { expert, row, weight }
    }));
}

/// How good a group of experts is.
fn good(gating: Gating, group: &[f32]) -> f32 {
    let considered = match gating {
        Gating::Softmax => 1,
        Gating::Sigmoid => 2,
    };
    let best = best((0..group.len()).collect(), group, considered);
    best.iter().map(|expert| group[*expert]).sum()
}

/// The best `count` of `candidates`, ascending.
fn best(mut candidates: Vec<usize>, goods: &[f32], count: usize) -> Vec<usize> {
    candidates.sort_by(|a, b| goods[*b].total_cmp(&goods[*a]).then(a.cmp(b)));
    candidates.truncate(count);
    candidates.sort_unstable();
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Experts = Experts {
        dense_layers: 0,
        count: 6,
        used: 2,
        feed_forward: 1,
        shared: 0,
        gating: Gating::Softmax,
        groups: 1,
        groups_used: 1,
        normalised: true,
        scale: 1.0,
    };

    fn chosen(shape: &Experts, bias: Option<&[f32]>, mut logits: Vec<f32>) -> Vec<(usize, f32)> {
        let mut routes = Vec::new();
        choose(shape, bias, 3, &mut logits, &mut routes);
        assert!(routes.iter().all(|route| route.row == 3));
        routes.iter().map(|route| (route.expert, route.weight)).collect()
    }

    #[test]
    fn the_best_are_chosen_in_ascending_order_and_their_weights_sum_to_the_scale() {
        let found = chosen(&Experts { scale: 2.5, ..SHAPE }, None, vec![0., 1., 3., 0., 2., 1.]);
        assert_eq!((found[0].0, found[1].0), (2, 4));
        assert!((found[0].1 / found[1].1 - 1f32.exp()).abs() < 1e-5);
        assert!((found[0].1 + found[1].1 - 2.5).abs() < 1e-6);
        assert_eq!(chosen(&SHAPE, None, vec![1.0; 6]), [(0, 0.5), (1, 0.5)], "ties");
    }

    #[test]
    fn experts_of_other_groups_are_not_considered() {
        let logits = vec![0., 3., 0., 2., 2.5, 2.];
        let grouped = Experts { groups: 3, groups_used: 1, ..SHAPE };
        // The best single expert is in the first group; the best two together are in the last.
        let softmax: Vec<usize> =
            chosen(&grouped, None, logits.clone()).iter().map(|c| c.0).collect();
        assert_eq!(softmax, [0, 1]);
        let sigmoid = Experts { gating: Gating::Sigmoid, ..grouped };
        let found: Vec<usize> = chosen(&sigmoid, None, logits).iter().map(|c| c.0).collect();
        assert_eq!(found, [4, 5]);
    }

    #[test]
    fn the_bias_decides_the_choice_and_not_the_weight() {
        let shape = Experts { gating: Gating::Sigmoid, normalised: false, ..SHAPE };
        let bias = [0., 0., 0., 0., 0., 9.];
        let found = chosen(&shape, Some(&bias), vec![0., 1., 0., 0., 0., 0.]);
        assert_eq!((found[0].0, found[1]), (1, (5, 0.5)));
    }

    #[test]
    fn numbers_that_are_none_choose_somebody() {
        assert_eq!(chosen(&SHAPE, None, vec![f32::NAN; 6]).len(), 2);
    }
}
