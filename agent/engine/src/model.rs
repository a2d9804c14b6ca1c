//! A forward pass, and the one interface by which it is computed.
//!
//! [`Compute`] has whole-layer operations over block tables and keeps its buffers to itself: one virtual call
//! per layer, none per element. A CUDA or wgpu backend fits behind it with weights, cache and hidden states in its
//! own memory; then `embed` uploads tokens and tables once per step, layers launch kernels in order, and only
//! `logits` waits for the device.

pub use crate::shape::{Shape, ShapeError};

/// One token of a step.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The token.
    pub token: u32,
    /// Its position in its sequence.
    pub position: usize,
    /// Its sequence's blocks.
    pub table: &'a [u32],
    /// Whether logits are wanted.
    pub logits: bool,
}

/// The tokens of a step. Of one sequence they are in the order of their positions.
pub type Batch<'a> = [Row<'a>];

/// Whole-layer operations on the hidden states of one batch at a time, which the implementation keeps.
///
/// Each row's result depends on its token, its position and what its table holds, and on no other row.
pub trait Compute: Send {
    /// Layers.
    fn layers(&self) -> usize;
    /// Starts a batch: hidden states are the tokens' embeddings.
    fn embed(&mut self, batch: &Batch<'_>);
    /// Adds attention of `layer`; writes keys and values to the blocks.
    fn attention(&mut self, layer: usize, batch: &Batch<'_>);
    /// Adds the feed-forward part of `layer`.
    fn feed_forward(&mut self, layer: usize);
    /// Logits of the rows that want them, one after the other.
    fn logits(&mut self, batch: &Batch<'_>) -> &[f32];
    /// Zeroes a block in every layer.
    fn zero(&mut self, block: u32);
}

/// Computes a batch; returns the logits of the rows that want them.
pub fn forward<'c>(compute: &'c mut dyn Compute, batch: &Batch<'_>) -> &'c [f32] {
    compute.embed(batch);
    for layer in 0..compute.layers() {
        compute.attention(layer, batch);
        compute.feed_forward(layer);
    }
    compute.logits(batch)
}
