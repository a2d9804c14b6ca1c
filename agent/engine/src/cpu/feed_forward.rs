//! Feed-forward parts: one for all tokens, or experts.

use kernels::{Product, add, matmul, swiglu};

use super::Work;
use super::experts::choose;
use crate::weights::{ExpertsWeights, Gated, Weights};

impl Work {
    pub(super) fn dense(&mut self, weights: &Weights, gated: &Gated) {
        self.gated(weights, gated);
        let b = &mut self.buffers;
        add(&mut b.hidden, &b.added);
    }

    /// `added` becomes what `gated` makes of the activations.
    fn gated(&mut self, weights: &Weights, gated: &Gated) {
        let b = &mut self.buffers;
        let rows = b.activations.rows();
        b.gate.resize(rows * gated.gate.rows(), 0.0);
        b.up.resize(b.gate.len(), 0.0);
        let products = vec![
            Product { matrix: weights.matrix(&gated.gate), out: &mut b.gate },
            Product { matrix: weights.matrix(&gated.up), out: &mut b.up },
        ];
        matmul(self.isa, &mut self.pool, &b.activations, products);
        swiglu(&mut b.gate, &b.up);
        b.activations.set(&b.gate, gated.down.columns());
        b.added.resize(rows * gated.down.rows(), 0.0);
        let product = Product { matrix: weights.matrix(&gated.down), out: &mut b.added };
        matmul(self.isa, &mut self.pool, &b.activations, vec![product]);
    }

    /// Each row gets what its experts say in the order of the experts' numbers, whatever other rows are there.
    pub(super) fn experts(&mut self, weights: &Weights, tensors: &ExpertsWeights, layer: usize) {
        self.route(weights, tensors, layer);
        if let Some(shared) = &tensors.shared {
            self.dense(weights, shared);
        }
        let hidden = self.shape.hidden;
        let routes = std::mem::take(&mut self.buffers.routes);
        for routes in routes.chunk_by(|a, b| a.expert == b.expert) {
            let b = &mut self.buffers;
            b.picked.clear();
            for route in routes {
                b.picked.extend_from_slice(&b.normed[route.row * hidden..][..hidden]);
            }
            b.activations.set(&b.picked, hidden);
            self.gated(weights, &tensors.experts[routes[0].expert]);
            let b = &mut self.buffers;
            for (route, added) in routes.iter().zip(b.added.chunks_exact(hidden)) {
                let row = &mut b.hidden[route.row * hidden..][..hidden];
                row.iter_mut().zip(added).for_each(|(x, added)| *x += route.weight * added);
            }
        }
        self.buffers.routes = routes;
    }

    /// Sends each row of the activations to experts; routes are in the order of the experts.
    fn route(&mut self, weights: &Weights, tensors: &ExpertsWeights, layer: usize) {
        let b = &mut self.buffers;
        b.routes.clear();
        let Some(shape) = self.shape.experts(layer) else { return };
        b.scores.resize(b.activations.rows() * shape.count, 0.0);
        let product = Product { matrix: weights.matrix(&tensors.router), out: &mut b.scores };
        matmul(self.isa, &mut self.pool, &b.activations, vec![product]);
        for (row, logits) in b.scores.chunks_exact_mut(shape.count).enumerate() {
            choose(shape, tensors.choice_bias.as_deref(), row, logits, &mut b.routes);
        }
        b.routes.sort_by_key(|route| (route.expert, route.row));
    }
}
